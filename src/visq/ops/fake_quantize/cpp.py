"""Simulated quantization in C++ (csrc/fake_quantize.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import _native, backends
from visq.ops._native import _C

_AXES = {"tensor": 0, "channel": 1, "token": 2}


@backends.register("fake_quantize", "cpp")
def forward(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, smooth: Tensor | None, qmin: int, qmax: int, axis: str
) -> Tensor:
    """y [B, L, C]; arguments as in `visq.ops.fake_quantize`."""
    rows, x = _native.native_rows(x)
    vectors = [None if v is None else v.contiguous() for v in (scale, zero_point, smooth)]
    y = torch.empty(x.shape, dtype=torch.float32)
    addresses = [0 if v is None else v.data_ptr() for v in vectors]
    _C.fake_quantize((*x.shape, 0), rows, *addresses, qmin, qmax, _AXES[axis], y.data_ptr(), _native.threads())
    return y
