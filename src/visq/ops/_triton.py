"""The Triton kernels of the ops: whether this machine can run them, and how tensors are handed to them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from visq.ops import backends

#: The oldest compute capability that the kernels are compiled for (Ampere).
LEAST_CAPABILITY = (8, 0)


def register_triton(op: str) -> Callable[[backends.Function], backends.Function]:
    """Decorator: registers a function as the Triton implementation of an op. It imports Triton when it first runs."""
    return backends.register(op, "triton", priority=10, devices=("cuda",), check=usable)


def usable(*args: Any) -> tuple[bool, str]:
    """Returns (ok, reason) for the device of the first tensor, or for the current one without arguments."""
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed: pip install 'visq[gpu]'"
    if torch.version.cuda is None:
        return False, "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return False, f"PyTorch for CUDA {torch.version.cuda} finds no GPU: there is none, or its driver is too old"
    device = next((x.device for x in _tensors(args)), None)
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        least, found = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, capability))
        return False, f"needs compute capability {least}, and this GPU has {found}"
    return True, ""


def contiguous_channels(x: Tensor) -> Tensor:
    """Returns a tensor [B, L, C] whose channels are adjacent; batches and rows keep any stride."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def power_of_two(size: int) -> int:
    """Returns the least power of two that is not below size; Triton's blocks have such sizes."""
    return 1 << max(size - 1, 0).bit_length()


def _tensors(args: Any) -> Iterator[Tensor]:
    """Yields the tensors of nested tuples."""
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)
