"""Simulated quantization written out: the oracle."""

from __future__ import annotations

from torch import Tensor

from visq.ops import backends


@backends.register("fake_quantize", "naive")
def forward(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, smooth: Tensor | None, qmin: int, qmax: int, axis: str
) -> Tensor:
    """y [B, L, C]; arguments as in `visq.ops.fake_quantize`."""
    shape = (-1, 1) if axis == "token" else (-1,)
    scale = scale.view(shape)
    zero = 0.0 if zero_point is None else zero_point.view(shape)
    v = x / scale if smooth is None else x / smooth / scale
    y = ((v.round() + zero).clamp(qmin, qmax) - zero) * scale
    return (y if smooth is None else y * smooth).contiguous()
