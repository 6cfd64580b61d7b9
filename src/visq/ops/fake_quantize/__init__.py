"""Simulated uniform quantization in one pass. `Quantizer` uses it for activations where no gradient is wanted."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.ops import backends
from visq.ops._checks import require_dims, require_same_device, require_shape
from visq.ops.fake_quantize import cpp, naive, triton  # noqa: F401  (they register themselves)

Axis = Literal["tensor", "channel", "token"]
_OP = "fake_quantize"


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, smooth: Tensor | None, qmin: int, qmax: int, axis: Axis
) -> Tensor:
    """Returns decode(encode(x)) with q = clamp(rint(x / (smooth scale)) + zero_point, qmin, qmax), to the bit.

        y = (q - zero_point) * (scale * smooth)             axis "tensor" and "channel"
        y = ((q - zero_point) * smooth) * scale             axis "token"

    and x is multiplied by the reciprocals of these factors in the same order.

    Arguments:
        x: float32 [B, L, C]; batches and rows may have any stride.
        scale: float32, positive; [1] (axis "tensor"), [C] ("channel") or [L] ("token").
        zero_point: integers as float32, shaped like scale, or None for 0.
        smooth: float32 [C], positive, or None for 1.
        qmin, qmax: range of the codes.

    Returns:
        y, float32 [B, L, C], contiguous. Not differentiable.

    Raises:
        VisqError: on a wrong shape or dtype.
    """
    if axis not in ("tensor", "channel", "token"):
        raise VisqError(f'{_OP}: axis must be "tensor", "channel" or "token", got {axis!r}')
    return _forward(x, scale, zero_point, smooth, qmin, qmax, axis)


def _check(x: Tensor, scale: Tensor, zero_point: Tensor | None, smooth: Tensor | None, axis: str) -> None:
    require_dims(_OP, "x", x, "[B, L, C]")
    size, spelled = {"tensor": (1, "[1]"), "channel": (x.shape[2], "[C]"), "token": (x.shape[1], "[L]")}[axis]
    require_shape(_OP, "scale", scale, (size,), spelled)
    if zero_point is not None:
        require_shape(_OP, "zero_point", zero_point, (size,), spelled)
    if smooth is not None:
        require_shape(_OP, "smooth", smooth, (x.shape[2],), "[C]")
    require_same_device(_OP, x=x, scale=scale, zero_point=zero_point, smooth=smooth)


@torch.library.custom_op("visq::fake_quantize", mutates_args=())
def _forward(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, smooth: Tensor | None, qmin: int, qmax: int, axis: str
) -> Tensor:
    _check(x, scale, zero_point, smooth, axis)
    return backends.call(_OP, x.device.type, x, scale, zero_point, smooth, qmin, qmax, axis)


@_forward.register_fake
def _(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, smooth: Tensor | None, qmin: int, qmax: int, axis: str
) -> Tensor:
    _check(x, scale, zero_point, smooth, axis)
    return x.new_empty(x.shape)
