"""Times a quantized model's engine beside everything else that could run the network, taking turns."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from visq.analysis.roofline import Rates, Work, count_work, measure_rates, roofline
from visq.artifact import is_artifact, load
from visq.data import Preprocess
from visq.errors import VisqError
from visq.export.network import artifact_to_onnx, network_to_onnx
from visq.export.runtimes import RUNTIMES, open_in
from visq.export.scan import CHUNKS
from visq.progress import Progress
from visq.quant.site import named_sites
from visq.quant.site_error import decibels
from visq.runtime import Engine, load_engine
from visq.runtime.bundle import read_bundle
from visq.simulation import undeploy

#: Least rounds of a contender; more follow while its time lasts.
ROUNDS = 7

#: Calls before timing starts. torch.compile may compile again after the first ones.
WARM_UP = 4

#: Roughly what compiling takes [s], and how much slower than PyTorch the slow contender is; for the forecast only.
COMPILING, SLOWER = 30.0, 20.0

Run = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """One way to run the network.

    Attributes:
        backend: `int`, `eager-fp32`, `compile-bf16`, ...
        make: images [batch, channels, size, size] float32 -> what is timed.
        slow: timed a few times only.
    """

    backend: str
    make: Callable[[np.ndarray], Run]
    slow: bool = False


def bench(
    target: Any,
    *,
    batches: list[int],
    threads: int,
    seconds: float = 3.0,
    backends: list[str] | None = None,
    repeats: int = 1,
    progress: Progress | None = None,
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
    """
    progress = progress or Progress("silent")
    folder = Path(target) if isinstance(target, str | Path) else None
    if folder is not None and not is_artifact(folder):
        raise VisqError(f"{folder} is not an artifact: it has no config.json")
    network: Any = target if folder is None else load(folder)
    name = folder.name if folder is not None else network.card.name
    engine = None if folder is None else load_engine(folder, threads=threads)
    contenders = [c for c in make_contenders(network, engine) if backends is None or c.backend in backends]
    runtimes = runtime_contenders(network, folder, engine, threads)
    for backend, make in runtimes.items():
        if backends is None or backend in backends:
            try:
                contenders.append(make())
            except VisqError as error:
                if not contenders:
                    raise
                progress.say(f"no {backend}: {error}")
    if unknown := sorted(set(backends or ()) - {*runtimes, *(c.backend for c in contenders)}):
        raise VisqError(f"backend {', '.join(unknown)} is unknown or needs an artifact or a package that is not there")
    rows: list[dict[str, Any]] = []
    least = None if folder is None or engine is None else least_time(folder, engine)
    with using_threads(threads), torch.no_grad():
        start = time.perf_counter()
        without_quantizers(network)(torch.from_numpy(example(network.card.preprocess, 1)))
        one_image = time.perf_counter() - start
        forecast = repeats * expected_seconds(contenders, batches, seconds, one_image)
        progress.say(f"this takes about {spoken(forecast)}; --seconds, --batch and --backends make it shorter")
        for batch in batches:
            images = example(network.card.preprocess, batch)
            torch._dynamo.reset()
            exact = without_quantizers(network)(torch.from_numpy(images)).numpy()
            ready: dict[str, Run] = {}
            errors: dict[str, float | None] = {}
            for contender in contenders:
                progress.say(f"batch {batch}: warming up {contender.backend}")
                run = contender.make(images)
                for _ in range(WARM_UP):
                    outputs = run()
                errors[contender.backend] = sqnr_db(torch.as_tensor(outputs).float().numpy(), exact)
                ready[contender.backend] = run
            slow = {c.backend for c in contenders if c.slow}
            for backend, times in take_turns(ready, slow, seconds).items():
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
            total += WARM_UP * call + timed + COMPILING * contender.backend.startswith("compile")
    return total


def spoken(seconds: float) -> str:
    """Returns `40 s` or `12 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def example(preprocess: Preprocess, batch: int) -> np.ndarray:
    """Returns noise in the range of real images, [batch, channels, size, size] float32."""
    shape = (batch, preprocess.channels, preprocess.image_size, preprocess.image_size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def make_contenders(network: Any, engine: Engine | None) -> list[Contender]:
    """Returns everything that can run the network here. Torch contenders use visq's fp32 scan, the reference a loop."""
    plain = without_quantizers(network)

    def eager(dtype: torch.dtype) -> Callable[[np.ndarray], Run]:
        return lambda images: lambda: autocast(plain, torch.from_numpy(images), dtype)

    def compiled(dtype: torch.dtype) -> Callable[[np.ndarray], Run]:
        def make(images: np.ndarray) -> Run:
            run = torch.compile(lambda x: autocast(plain, x, dtype))
            return lambda: run(torch.from_numpy(images))

        return make

    def reference(images: np.ndarray) -> Run:
        def run() -> object:
            with naive_ops():
                return plain(torch.from_numpy(images))

        return run

    found = [] if engine is None else [Contender("int", lambda images: lambda: engine(images))]
    return [
        *found,
        Contender("eager-fp32", eager(torch.float32)),
        Contender("eager-bf16", eager(torch.bfloat16)),
        Contender("compile-fp32", compiled(torch.float32)),
        Contender("compile-bf16", compiled(torch.bfloat16)),
        Contender("plain-pytorch", reference, slow=True),
    ]


def runtime_contenders(
    network: Any, folder: Path | None, engine: Engine | None, threads: int
) -> dict[str, Callable[[], Contender]]:
    """Returns, by name, what makes the contenders of other runtimes: the FP32 network, and an artifact's own numbers.

    Each gets the form of the scan that is fastest there. Making one raises VisqError where the runtime is not installed
    or the network has no form for it.
    """

    def maker(backend: str, runtime: str, content: Callable[[int], bytes]) -> Callable[[], Contender]:
        def make() -> Contender:
            run = open_in(runtime, content(CHUNKS[runtime]), threads)
            return Contender(backend, lambda images: lambda: run(images))

        return make

    found = {}
    for runtime in RUNTIMES:
        found[f"{runtime}-fp32"] = maker(
            f"{runtime}-fp32", runtime, lambda chunk: network_to_onnx(without_quantizers(network), chunk)
        )
        if folder is not None and engine is not None:
            found[f"{runtime}-int"] = maker(f"{runtime}-int", runtime, lambda chunk: artifact_to_onnx(folder, chunk))
    return found


def sqnr_db(found: np.ndarray, exact: np.ndarray) -> float | None:
    """Returns the ratio of logits to their error [dB]: None where they are equal, NaN where one is not finite."""
    if not np.isfinite(found).all():
        return math.nan
    signal, noise = (float(np.square(x, dtype=np.float64).sum()) for x in (exact, found - exact))
    return decibels(signal, noise)


def least_time(folder: Path, engine: Engine) -> tuple[Work, Rates] | None:
    """Returns an image's work and this machine's rates with the engine's threads; None without the C++ engine."""
    if engine.kernel == "oracle":
        return None
    work = count_work(engine.program, read_bundle(folder))
    isa = engine.kernel.removeprefix("cpp-")
    return work, measure_rates(isa, engine.threads, work.weight_bytes + work.image_bytes)


def autocast(network: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        result: torch.Tensor = network(images)
        return result


def without_quantizers(network: Any) -> Any:
    """Returns the network without its quantizers and computed by PyTorch, so that it is as fast as the FP32 model."""
    for _, site in named_sites(network):
        site.quantizer = None
    return undeploy(network).eval()


@contextlib.contextmanager
def naive_ops() -> Iterator[None]:
    """Runs every op as its readable loop inside a `with` block, as a user without kernels would."""
    before = os.environ.get("VISQ_OPS")
    os.environ["VISQ_OPS"] = "naive"
    try:
        yield
    finally:
        if before is None:
            del os.environ["VISQ_OPS"]
        else:
            os.environ["VISQ_OPS"] = before


@contextlib.contextmanager
def using_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_turns(runs: dict[str, Run], slow: set[str], seconds: float) -> dict[str, list[float]]:
    """Returns the seconds of every call by contender. Contenders take turns until each had its time."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    active = set(runs)
    while active:
        for name, run in runs.items():
            if name not in active:
                continue
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
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
