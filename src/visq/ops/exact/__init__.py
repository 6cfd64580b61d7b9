"""What the integer engine computes in float32, on tensors and with its bits: the arithmetic of a deployed network.

docs/integer-semantics.md defines each function. None has a gradient. Sequences are [B, L, C] float32; one token of each
image, [B, C], is a sequence of one. The oracle runs on the CPU only, and PyTorch's form on CUDA. Another device is
refused, because a loop on the host would take minutes for an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.integer.arithmetic import runs_of
from visq.integer.float_scan import FloatScan
from visq.ops import backends
from visq.ops._checks import require_shape
from visq.ops.exact import cpp, eager, naive  # noqa: F401  (they register themselves)


def unary(name: str, x: Tensor) -> Tensor:
    """Returns an elementwise function of x, any shape; `name` is one of `visq.integer.instructions.UNARY`."""
    return _call(name, x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns x / sqrt(mean(x^2) + eps) * weight over the last axis; weight [C]."""
    return _call("rms_norm", x, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Returns (x - mean) / sqrt(variance + eps) * weight + bias over the last axis; weight, bias [C]."""
    return _call("layer_norm", x, weight, bias, eps)


def mean(x: Tensor) -> Tensor:
    """Returns the mean of the tokens, added up in their order. [B, L, C] -> [B, C]."""
    return _call("mean", x)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x [..., K] by weight [N, K], added up in the order of K without fused multiply-adds -> [..., N]."""
    require_shape("product", "weight", weight, (len(weight), x.shape[-1]), "[N, K]")
    return _call("product", x, weight)


def rotate(x: Tensor, matrix: Tensor, divisor: Tensor | None) -> Tensor:
    """Returns x [..., C] in the coordinates of a `visq.quant.rotated.Rotation`: matrix [m, m], divisor [C]."""
    inverse = x.new_ones(x.shape[-1]) if divisor is None else 1 / divisor
    require_shape("rotate", "divisor", inverse, (x.shape[-1],), "[C]")
    if not runs_of(x.shape[-1], len(matrix)):
        raise VisqError(f"rotate: matrix is [{len(matrix)}, ...]: {x.shape[-1]} channels are no power of two of it")
    return _call("rotate", x, inverse, matrix)


def float_scan(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, form: FloatScan) -> Tensor:
    """Runs the selective scan in float32, rounding what `form` has codecs for.

    u, delta [B, L, d_inner]; B, C [B, L, N], all in scan order -> y [B, L, d_inner].
    """
    channels, states = form.A.shape
    for name, tensor, width in (("u", u, channels), ("delta", delta, channels), ("B", B, states), ("C", C, states)):
        require_shape("float_scan", name, tensor, (*u.shape[:2], width), "[B, L, width]")
    return _call("float_scan", u, delta, B, C, form)


@torch.no_grad()
def _call(function: str, x: Tensor, *args: object) -> Tensor:
    y: Tensor = backends.call("exact", x.device.type, function, x, *args)
    return y
