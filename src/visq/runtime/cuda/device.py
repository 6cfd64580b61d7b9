"""Finds the GPU that an engine runs on, or says what is missing."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import TYPE_CHECKING

from visq.errors import VisqError

if TYPE_CHECKING:
    import torch

_ELSE = "backend 'int' runs on the CPU"


def interpreted() -> bool:
    """Returns whether Triton was told to run kernels in its interpreter, on the CPU and very slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def find_device(name: str | None = None) -> torch.device:
    """Returns the device `cuda` or `cuda:<index>` (by default the current GPU); the CPU in Triton's interpreter.

    Raises:
        VisqError: torch, Triton, a build for CUDA or the GPU is missing, or the GPU is too old. The message says what
            to do.
    """
    if name is not None and not re.fullmatch(r"cuda(:\d+)?", name):
        raise VisqError(f"backend 'cuda' runs on cuda or cuda:<index>, not on '{name}'; {_ELSE}")
    for module, package in (("torch", "torch"), ("triton", "'visq[gpu]'")):
        if importlib.util.find_spec(module) is None:
            raise VisqError(f"backend 'cuda' needs {module}: pip install {package}; {_ELSE}")
    import torch

    from visq.device import why_not

    if interpreted():
        return torch.device("cpu")
    number = str(name or "cuda").partition(":")[2]
    index = int(number) if number else torch.cuda.current_device() if torch.cuda.is_available() else 0
    if why := why_not(index):
        raise VisqError(f"backend 'cuda' cannot be used: {why}; {_ELSE}")
    return torch.device("cuda", index)
