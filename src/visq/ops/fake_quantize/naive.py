"""Simulated quantization, step by step: the oracle."""

from __future__ import annotations

from torch import Tensor

from visq.ops import backends


@backends.register("fake_quantize", "naive")
def forward(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, smooth: Tensor | None, qmin: int, qmax: int, axis: str
) -> Tensor:
    """Returns y [B, L, C]; arguments as in `visq.ops.fake_quantize`."""
    shape = (-1, 1) if axis == "token" else (-1,)
    steps = [scale.view(shape)]
    if smooth is not None:
        steps = [smooth, *steps] if axis == "token" else [steps[0] * smooth]
    zero = 0.0 if zero_point is None else zero_point.view(shape)
    for step in steps:
        x = x * (1 / step)
    y = (x.round() + zero).clamp(qmin, qmax) - zero
    for step in steps:
        y = y * step
    return y.contiguous()
