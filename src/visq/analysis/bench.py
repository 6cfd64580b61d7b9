"""Times a quantized model's engine beside everything else that could run the network, taking turns."""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo.utils

from visq.analysis.contenders import Contender, Run, make_contenders, optional_contenders, without_quantizers
from visq.analysis.evaluate import check_labels
from visq.analysis.roofline import Rates, Work, count_work, measure_rates, roofline
from visq.artifact import is_artifact, load
from visq.data import Dataset, Preprocess
from visq.data.dataset import mixed
from visq.device import CPU, on_its_device, too_little_memory
from visq.errors import VisqError
from visq.progress import Progress
from visq.quant.site_error import decibels
from visq.runtime import Engine, load_engine
from visq.runtime.bundle import read_bundle

#: Least rounds of a contender; more follow while its time lasts.
ROUNDS = 7

#: A turn is a pause and then calls [s]. In the pause the threads of the contender before go to sleep: OpenMP's spin for
#: milliseconds after a call, on processors that the next one needs.
PAUSE, TURN = 0.02, 0.1

#: Calls before timing starts. torch.compile may compile again after the first ones.
WARM_UP = 4

#: Roughly what compiling takes [s], and how much slower than PyTorch the slow contender is; for the forecast only.
COMPILING, SLOWER = 30.0, 20.0


def bench(
    target: Any,
    *,
    batches: list[int],
    threads: int,
    seconds: float = 3.0,
    backends: list[str] | None = None,
    repeats: int = 1,
    data: Dataset | None = None,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns rows of latency by backend and batch, and the engine's profile.

    Contenders take turns, so that a busy machine hurts all alike; each is warmed up first. The engine's rows also say
    how near it comes to the least time possible (`visq.analysis.roofline`).

    Arguments:
        target: an artifact's folder, or an FP32 model (without the engine then).
        seconds: about how long each batch size is measured for each contender.
        backends: which contenders; by default all there are here, the runtimes of others among them where they can run
            the network.
        repeats: how many calls like this one are still to come, this one included; the forecast counts them all.
        data: labelled images, on which every contender's top-1 is measured; contenders are then warmed up on them, and
            torchao is calibrated on their first batch. Noise by default.
        device: where PyTorch computes. Runtimes of others and torchao take part on the CPU only.
    Raises:
        VisqError: a contender that is not there, images without labels, a GPU whose memory is full.
    """
    progress = progress or Progress("silent")
    folder = Path(target) if isinstance(target, str | Path) else None
    if folder is not None and not is_artifact(folder):
        raise VisqError(f"{folder} is not an artifact: it has no config.json")
    network: Any = target if folder is None else load(folder)
    name = folder.name if folder is not None else network.card.name
    engine = None if folder is None else load_engine(folder, threads=threads)
    ours = make_contenders(network, engine, device)
    contenders = [c for c in ours if backends is None or c.backend in backends]
    optional = optional_contenders(network, folder, engine, threads)
    if device != CPU:
        optional = {backend: make for backend, make in optional.items() if backend == "cuda"}
    for backend, make in optional.items():
        if backend in backends if backends is not None else backend != "cuda" or torch.cuda.is_available():
            try:
                contenders.append(make())
            except VisqError as error:
                if not contenders:
                    raise
                progress.say(f"no {backend}: {error}")
    there = {*optional, *(c.backend for c in ours)}
    if unknown := sorted(set(backends or ()) - there):
        raise VisqError(
            f"backend {', '.join(unknown)} cannot run here; there are {', '.join(sorted(there))} (others need "
            "an artifact or a package that is missing)"
        )
    if data is not None:
        check_labels(network, data)
    rows: list[dict[str, Any]] = []
    least = None if folder is None or engine is None else least_time(folder, engine)
    with using_threads(threads), torch.no_grad():
        start = time.perf_counter()
        on_its_device(without_quantizers(network))(torch.from_numpy(example(network.card.preprocess, 1)))
        one_image = time.perf_counter() - start
        forecast = repeats * expected_seconds(contenders, batches, seconds, one_image)
        progress.say(f"this takes about {spoken(forecast)}; --seconds, --batch and --backends make it shorter")
        for batch in batches:
            images = example(network.card.preprocess, batch) if data is None else one_batch(data, batch)
            torch._dynamo.reset()
            exact = on_its_device(without_quantizers(network))(torch.from_numpy(images)).numpy()
            ready: dict[str, Callable[[], object]] = {}
            errors: dict[str, float | None] = {}
            right: dict[str, float | None] = {}
            for contender in contenders:
                progress.say(f"batch {batch}: warming up {contender.backend}")
                run = contender.make(images)
                try:
                    for _ in range(WARM_UP):
                        outputs = run(images)
                except torch.OutOfMemoryError as error:
                    raise too_little_memory(device, batch) from error
                errors[contender.backend] = sqnr_db(torch.as_tensor(outputs).float().numpy(), exact)
                right[contender.backend] = None if data is None else top1(run, data, batch)
                ready[contender.backend] = partial(run, images)
            slow = {c.backend for c in contenders if c.slow}
            for backend, times in timed(ready, slow, seconds, progress).items():
                median = statistics.median(times)
                rows.append(
                    {
                        "name": name,
                        "backend": backend,
                        "batch": batch,
                        "threads": threads,
                        "latency_ms": {"median": 1e3 * median, "p90": 1e3 * float(np.quantile(times, 0.9))},
                        "images_per_second": batch / median,
                        "rounds": len(times),
                        "sqnr_db": errors[backend],
                        "top1": right[backend],
                        "peak_rss_bytes": None,
                        "roofline": roofline(*least, batch, median) if least and backend == "int" else None,
                    }
                )
    if folder is not None:
        for row in rows:
            if row["backend"] == "int":
                row["peak_rss_bytes"] = engine_rss(folder, row["batch"], threads)
    profile = {} if engine is None else engine.profile(example(network.card.preprocess, 1))
    return rows, profile


def expected_seconds(contenders: list[Contender], batches: list[int], seconds: float, one_image: float) -> float:
    """Returns how long a run takes, roughly; `one_image` is PyTorch's time for an image [s]."""
    total = 0.0
    for batch in batches:
        for contender in contenders:
            call = one_image * batch * (SLOWER if contender.slow else 1)
            timed = 3 * call if contender.slow else max(seconds, ROUNDS * call)
            total += WARM_UP * call + timed * (1 + PAUSE / TURN) + COMPILING * contender.compiles
    return total


def spoken(seconds: float) -> str:
    """Returns `40 s` or `12 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def example(preprocess: Preprocess, batch: int) -> np.ndarray:
    """Returns noise in the range of real images, [batch, channels, size, size] float32."""
    shape = (batch, preprocess.channels, preprocess.image_size, preprocess.image_size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def sqnr_db(found: np.ndarray, exact: np.ndarray) -> float | None:
    """Returns the ratio of logits to their error [dB]: None where they are equal, NaN where one is not finite."""
    if not np.isfinite(found).all():
        return math.nan
    signal, noise = (float(np.square(x, dtype=np.float64).sum()) for x in (exact, found - exact))
    return decibels(signal, noise)


def least_time(folder: Path, engine: Engine) -> tuple[Work, Rates] | None:
    """Returns an image's work and this machine's rates with the engine's threads; None without the C++ engine."""
    if not engine.kernel.startswith("cpp-"):
        return None
    work = count_work(engine.program, read_bundle(folder))
    isa = engine.kernel.removeprefix("cpp-")
    return work, measure_rates(isa, engine.threads, work.weight_bytes + work.image_bytes)


@contextlib.contextmanager
def using_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_batch(data: Dataset, batch: int) -> np.ndarray:
    """Returns `batch` images drawn from all, always the same ones; again from the first where there are fewer."""
    images = next(iter(mixed(data, batch, seed=0).batches(batch)))[0].numpy()
    return np.resize(images, (batch, *images.shape[1:]))


def top1(run: Run, data: Dataset, batch: int) -> float:
    """Returns the top-1 accuracy [%] of what takes whole batches only."""
    right = total = 0
    for images, labels in data.batches(batch):
        outputs = torch.as_tensor(run(np.resize(images.numpy(), (batch, *images.shape[1:]))))
        right += int((outputs[: len(labels)].argmax(1) == labels).sum())
        total += len(labels)
    return 100 * right / total


def timed(
    runs: dict[str, Callable[[], object]], slow: set[str], seconds: float, progress: Progress
) -> dict[str, list[float]]:
    """Returns `take_turns`; again where PyTorch compiled something meanwhile, since the first calls waited for that."""
    for _ in range(3):
        before = torch._dynamo.utils.counters["frames"]["total"]
        times = take_turns(runs, slow, seconds)
        if torch._dynamo.utils.counters["frames"]["total"] == before:
            return times
        progress.say("PyTorch compiled again while it was timed; this batch size is timed again")
    raise VisqError("PyTorch compiles again in every round; leave the contenders compile-* out with --backends")


def take_turns(runs: dict[str, Callable[[], object]], slow: set[str], seconds: float) -> dict[str, list[float]]:
    """Returns the seconds of every call by contender. Contenders take turns until each had its time."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    active = set(runs)
    while active:
        for name in [name for name in runs if name in active]:
            time.sleep(PAUSE)
            end = time.perf_counter() + TURN
            while name in active and (now := time.perf_counter()) < end:
                runs[name]()
                times[name].append(time.perf_counter() - now)
                enough = 3 if name in slow else ROUNDS
                if len(times[name]) >= enough and (name in slow or sum(times[name]) >= seconds):
                    active.discard(name)
    return times


_RSS = """
import sys
import numpy as np
import visq.runtime.cpu.engine
from visq.memory import peak_rss
from visq.runtime import load_engine
folder, batch, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
before = peak_rss()
engine = load_engine(folder, threads=threads)
p = engine.preprocess
engine(np.zeros((batch, p.channels, p.image_size, p.image_size), np.float32))
print(peak_rss() - before)
"""


def engine_rss(folder: Path, batch: int, threads: int) -> int | None:
    """Returns the peak memory [bytes] of a fresh process that runs the artifact, less what importing takes."""
    arguments = [sys.executable, "-c", _RSS, str(folder), str(batch), str(threads)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None
