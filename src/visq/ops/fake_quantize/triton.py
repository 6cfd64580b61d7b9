"""Simulated quantization in Triton, with the bits of the other kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import _triton

#: Tokens and channels of a program.
ROWS, BLOCK = 16, 64


@_triton.register_triton("fake_quantize")
def forward(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, smooth: Tensor | None, qmin: int, qmax: int, axis: str
) -> Tensor:
    """Returns y [B, L, C]; arguments as in `visq.ops.fake_quantize`."""
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if not x.numel():
        return y
    from visq.ops.fake_quantize import triton_kernels

    batch, length, channels = x.shape
    x, scale = _triton.contiguous_channels(x), scale.contiguous()
    triton_kernels.forward[batch, -(-length // ROWS), -(-channels // BLOCK)](
        x, scale, scale if zero_point is None else zero_point.contiguous(),
        scale if smooth is None else smooth.contiguous(), y, *x.stride()[:2], length, channels, qmin, qmax,
        AXIS=axis, HAS_ZERO=zero_point is not None, HAS_SMOOTH=smooth is not None, ROWS=ROWS, BLOCK=BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip
    return y
