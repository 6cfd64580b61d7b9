"""Describes what a number was measured with: versions, processor, threads, kernels."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import torch

from visq._version import __version__
from visq.ops import backends


def versions() -> dict[str, str]:
    return {
        "visq": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def machine() -> dict[str, str | int]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
    }


def kernels(device: str = "cpu") -> dict[str, str]:
    """Returns the kernel of each op on a type of device, such as `cpp-avx512`."""
    return {op: choice.kernel for op, choice in backends.describe(device).items()}


def slow_kernels(device: str = "cpu") -> dict[str, str]:
    """Returns, for each op that runs as a slow loop, why it does."""
    choices = backends.describe(device)
    slow = {op: choice for op, choice in choices.items() if choice.kernel == "naive" and choice.not_used}
    return {op: "; ".join(f"{name}: {why}" for name, why in choice.not_used) for op, choice in slow.items()}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
