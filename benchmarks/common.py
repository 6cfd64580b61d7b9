"""What every benchmark records about where it ran, and how it writes its results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import visq
from visq.analysis import Subject
from visq.analysis.bench import WARM_UP, take_turns
from visq.data import Dataset, open_dataset
from visq.ops import backends


def machine() -> dict[str, Any]:
    """Processor, threads, kernels, versions and commit of this run."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "visq": visq.__version__,
        "kernels": {op: choice.kernel for op, choice in backends.describe().items()},
        "commit": commit(),
    }


def commit() -> str:
    """The commit measured, with `+` when the tree has changes."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def subject_of(model: Any, data: str, calib: str | None = None) -> Subject:
    """A model measured on the test images of `data`, calibrated on the calibration images of `calib` or, without it,
    of `data` too."""
    card = model.card
    test = open_dataset(data, card.preprocess, split="test", classes=card.classes)
    return Subject(model, open_dataset(calib or data, card.preprocess, split="calib"), test)


def drawn_others(source: Dataset, count: int, taken: set[int], seed: int) -> list[int]:
    """The indices of at most `count` images that are not `taken`, drawn from all of these and ascending."""
    left = np.setdiff1d(np.arange(len(source)), sorted(taken))
    found: list[int] = np.sort(np.random.default_rng(seed).choice(left, min(count, len(left)), replace=False)).tolist()
    return found


def median_seconds(contenders: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median of each contender's calls, which take turns after a warm-up."""
    for run in contenders.values():
        for _ in range(WARM_UP):
            run()
    return {name: statistics.median(times) for name, times in take_turns(contenders, set(), seconds).items()}


def write_json(path: Path, value: Any) -> None:
    """Atomically, creating folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
