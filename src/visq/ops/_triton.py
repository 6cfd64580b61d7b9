"""The Triton kernels of the ops: whether this machine can run them, and how tensors are handed to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from visq.device import why_not
from visq.ops import backends
from visq.ops._scan import ScanInputs

#: Steps of a scan whose inputs are loaded together, and whose states a backward pass keeps in registers.
AHEAD = 8
#: Channels of a program of a scan, which is one warp.
BLOCK = 16


def register_triton(op: str, check: backends.Check | None = None) -> Callable[[backends.Function], backends.Function]:
    """Decorator: registers a function as the Triton implementation of an op. It imports Triton when it first runs.

    Arguments:
        check: whether it can run; by default `usable`.
    """
    return backends.register(op, "triton", priority=10, devices=("cuda",), check=check or usable)


def usable(*args: Any) -> tuple[bool, str]:
    """Returns (ok, reason) for the device of the first tensor, or for the current one without arguments."""
    device = next((x.device for x in _tensors(args)), None)
    index = torch.cuda.current_device() if device is None and torch.cuda.is_initialized() else 0
    why = why_not(index if device is None or device.index is None else device.index)
    return not why, why


def adjacent(inputs: ScanInputs) -> ScanInputs:
    """Returns the inputs of a scan with adjacent channels and a contiguous A."""
    u, delta, A, B, C = inputs
    rows = contiguous_channels
    return ScanInputs(rows(u), rows(delta), A.contiguous(), rows(B), rows(C))


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
