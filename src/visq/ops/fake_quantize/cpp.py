"""Simulated quantization in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.native.extension import _C
from visq.ops import _native

_AXES = {"tensor": 0, "channel": 1, "token": 2}


@_native.register_cpp("fake_quantize")
def forward(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, smooth: Tensor | None, qmin: int, qmax: int, axis: str
) -> Tensor:
    """Returns y [B, L, C]; arguments as in `visq.ops.fake_quantize`."""
    rows, x = _native.native_rows(x)
    scale = scale.contiguous()
    zero_point = None if zero_point is None else zero_point.contiguous()
    smooth = None if smooth is None else smooth.contiguous()
    y = torch.empty(x.shape, dtype=torch.float32)
    _C.fake_quantize(
        (*x.shape, 0),
        rows,
        scale.data_ptr(),
        0 if zero_point is None else zero_point.data_ptr(),
        0 if smooth is None else smooth.data_ptr(),
        qmin,
        qmax,
        _AXES[axis],
        y.data_ptr(),
        _native.threads(),
    )
    return y
