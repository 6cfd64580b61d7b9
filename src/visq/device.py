"""Resolves the device that PyTorch computes on, and keeps its arithmetic reproducible while it does."""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from visq.errors import VisqError

#: The oldest compute capability that the kernels are compiled for (Ampere).
LEAST_CAPABILITY = (8, 0)
CPU = torch.device("cpu")
_NAME = re.compile(r"cpu|auto|cuda(?::(\d+))?")


def resolve_device(given: str | torch.device | None) -> torch.device:
    """Returns the device that a name stands for.

    Arguments:
        given: `cpu`, `cuda`, `cuda:1`, or `auto`, which is `cuda` where it can be used and `cpu` elsewhere; None for
            `cpu`. Without a number, each process that torchrun started takes the GPU of its local rank.
    Raises:
        VisqError: another name, or a GPU that is not there or cannot run the kernels.
    """
    name = "cpu" if given is None else str(given)
    found = _NAME.fullmatch(name)
    if found is None:
        raise VisqError(f"device {name!r} cannot be used: there are cpu, cuda, cuda:0, cuda:1, ... and auto")
    index = int(found[1] or os.environ.get("LOCAL_RANK") or 0)
    why = "" if name == "cpu" else why_not(index)
    if name == "cpu" or (name == "auto" and why):
        return CPU
    if why:
        raise VisqError(f"device {name!r} cannot be used: {why}; take cpu, or auto for a GPU where there is one")
    return torch.device("cuda", index)


def why_not(index: int) -> str:
    """Returns why the kernels cannot run on GPU number `index`; empty where they can."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    with warnings.catch_warnings(record=True) as said:  # PyTorch warns of a driver that does not fit
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        because = f" ({_first_line(said[0].message)})" if said else ""
        return f"PyTorch for CUDA {torch.version.cuda} finds no GPU: there is none, or its driver is too old{because}"
    count = max(torch.cuda.device_count(), 1)
    if index >= count:
        return f"there is no GPU {index}, the last one is cuda:{count - 1}"
    try:
        capability = torch.cuda.get_device_capability(index)
    except RuntimeError as error:  # the driver is asked here for the first time
        return f"PyTorch for CUDA {torch.version.cuda} cannot use GPU {index}: {_first_line(error)}"
    if capability < LEAST_CAPABILITY:
        least, has = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, capability))
        return f"needs compute capability {least}, and this GPU has {has}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'visq[gpu]'"
    return ""


def _first_line(message: Warning | str | Exception) -> str:
    lines = str(message).strip().splitlines()
    return lines[0] if lines else type(message).__name__


def described(device: torch.device) -> str:
    """Returns what messages call a device, such as `cuda:0, NVIDIA H200`."""
    return f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def device_of(model: Any) -> torch.device:
    """Returns the device of a network's parameters; the CPU for anything without parameters, such as an engine."""
    parameters = getattr(model, "parameters", None)
    first: Tensor | None = None if parameters is None else next(iter(parameters()), None)
    return CPU if first is None else first.device


def on_its_device(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns a function that runs a network where its parameters are, for images and outputs on the CPU."""
    device = device_of(model)
    return lambda images: model(images.to(device)).cpu()


def too_little_memory(device: torch.device, batch: int | None, option: str = "--batch ") -> VisqError:
    """Returns the error of a GPU whose memory is full; `option` sets the images of a batch."""
    fewer = f"a smaller {option.strip(' =')} needs less" if batch is None or batch < 2 else f"try {option}{batch // 2}"
    of = "" if batch is None else f" for batches of {batch}"
    return VisqError(f"{described(device)} has too little memory{of}; {fewer}")


@contextmanager
def reproducible(device: torch.device, batch: int | None = None) -> Iterator[None]:
    """Makes PyTorch compute float32 in full and in a fixed order on a GPU, inside a `with` block.

    Arguments:
        batch: images of a batch, for the message when the GPU's memory is full.
    Raises:
        VisqError: the GPU has too little memory.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32)
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # cuBLAS adds up in a fixed order only with this setting, which it reads once.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        cudnn.allow_tf32 = cudnn.benchmark = matmul.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        with torch.cuda.device(device):
            yield
    except torch.OutOfMemoryError as error:
        raise too_little_memory(device, batch) from error
    finally:
        cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32 = before
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
