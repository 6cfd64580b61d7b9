"""Runs an exported file in the runtimes that are installed, beside the engine, before it is handed over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from visq.errors import VisqError
from visq.integer.arithmetic import Floats

#: images [B, channels, size, size] -> logits [B, classes].
Run = Callable[[Floats], Floats]
#: (a file's bytes, threads) -> how to run it, and the runtime's version.
Open = Callable[[bytes, int], tuple[Run, str]]


@dataclass(frozen=True)
class RuntimeAgreement:
    """How an exported file does in one runtime, on the same images as the engine.

    Attributes:
        runtime: its name and version.
        images: how many were compared.
        same: fraction of equal decisions.
        sqnr_db: signal (the engine's logits) to difference; infinite where they are equal.
        ms, engine_ms: milliseconds an image, both on the same number of threads in one run.
    """

    runtime: str
    images: int
    same: float
    sqnr_db: float
    ms: float
    engine_ms: float


def compare(
    content: bytes, images: Floats, engine: Run, threads: int, runtimes: Mapping[str, Open]
) -> list[RuntimeAgreement]:
    """Runs a file's content in every runtime of `runtimes` and compares its logits with the engine's.

    Raises:
        VisqError: a runtime refuses the file, or returns nothing, another shape, or values that are not finite.
    """
    expected, engine_ms = _timed(engine, images)
    rows = []
    for name, open_content in runtimes.items():
        with _naming(name):
            run, version = open_content(content, threads)
            found, ms = _timed(run, images)
        if found.shape != expected.shape or not np.isfinite(found).all():
            what = f"{list(found.shape)} instead of {list(expected.shape)}, or values that are not finite"
            raise VisqError(f"{name} gives {what}")
        noise = float(np.square(found - expected, dtype=np.float64).sum())
        signal = float(np.square(expected, dtype=np.float64).sum())
        sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise)
        same = float((found.argmax(1) == expected.argmax(1)).mean())
        rows.append(RuntimeAgreement(f"{name} {version}", len(images), same, sqnr, ms, engine_ms))
    return rows


def open_in(name: str, content: bytes, threads: int) -> Run:
    """Returns a function that runs a file's content in one of `RUNTIMES`.

    Raises:
        VisqError: the runtime is not installed, or refuses the file.
    """
    if find_spec(name) is None:
        raise VisqError(f"{name} is not installed: pip install {name}")
    with _naming(name):
        return RUNTIMES[name](content, threads)[0]


@contextmanager
def _naming(runtime: str) -> Iterator[None]:
    """Turns whatever a runtime throws into a VisqError of one line."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise VisqError(f"{runtime} does not run the exported network: {lines[0]}") from error


def _timed(run: Run, images: Floats) -> tuple[Floats, float]:
    """The logits, and milliseconds an image of the quicker of two runs."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        logits = run(images)
        times.append(time.perf_counter() - start)
    return logits, 1e3 * min(times) / len(images)


def _onnxruntime(content: bytes, threads: int) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads may spin within a run only. After it they would take processors from whatever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0], onnxruntime.__version__


def _openvino(content: bytes, threads: int) -> tuple[Run, str]:
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})
    network = core.compile_model(core.read_model(content), "CPU")
    return lambda images: np.asarray(network(images)[0]), openvino.__version__.split("-")[0]


#: Runtimes for ONNX, by the name of the package.
RUNTIMES: dict[str, Open] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def installed() -> dict[str, Open]:
    """Returns the runtimes for ONNX that are installed."""
    return {name: open_content for name, open_content in RUNTIMES.items() if find_spec(name) is not None}
