"""Latency of the engine, in all and by operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visq.analysis.bench import bench
from visq.analysis.machine import machine
from visq.runtime import Engine

#: About how long each way to run the network is measured [s].
SECONDS = 1.0
#: What the engine is set beside: the FP32 network in PyTorch.
FP32 = "eager-fp32"


def time_engine(folder: Path, engine: Engine) -> dict[str, Any]:
    """Returns milliseconds an image at batch 1, of the engine and of FP32 in PyTorch, measured in turns, and the thread
    time of each kind of operation."""
    rows, profile = bench(folder, batches=[1], threads=engine.threads, seconds=SECONDS, backends=["int", FP32])
    median = {row["backend"]: row["latency_ms"]["median"] for row in rows}
    total = sum(profile.values())
    operations = sorted(profile.items(), key=lambda item: (-item[1], item[0]))
    return {
        "ms": median["int"],
        "fp32_ms": median[FP32],
        "times_faster": median[FP32] / median["int"],
        "threads": engine.threads,
        "kernel": engine.kernel,
        "processor": machine()["processor"],
        "operations": [{"kind": kind, "ms": ms, "share": ms / total} for kind, ms in operations],
    }
