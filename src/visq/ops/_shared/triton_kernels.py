"""Functions that several Triton kernels share; imported by them only, when the first one runs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def inside(mask, t, L: tl.constexpr):
    """Returns the mask where the step t is in the sequence. The interpreter refuses to spread a mask of one bit."""
    return mask & (tl.zeros(mask.shape, tl.int32) + t < L)


@triton.jit
def load_steps(X, stride, start, mask, L: tl.constexpr, AHEAD: tl.constexpr):
    """Returns a tuple of AHEAD rows as float32, from the row `start`."""
    rows = ()
    for k in tl.static_range(AHEAD):
        rows = rows + (tl.load(X + (start + k) * stride, mask=inside(mask, start + k, L), other=0.0).to(tl.float32),)
    return rows


@triton.jit
def rint(x):
    """Returns the nearest whole number, ties to even. From 2^23 on, every float32 is whole."""
    low = tl.floor(x)
    part = x - low
    even = tl.floor(low * 0.5) * 2.0 == low
    up = (part > 0.5) | ((part == 0.5) & (even == 0))
    return tl.where(tl.abs(x) < 8388608.0, tl.where(up, low + 1.0, low), x)


@triton.jit
def one_over(x):
    """Returns 1 / x, rounded to nearest."""
    return tl.math.div_rn(tl.full(x.shape, 1.0, tl.float32), x)


@triton.jit
def clamp(x, low, high):
    """Returns x within [low, high]; comparisons keep NaN, as torch.clamp does."""
    return tl.where(x < low, low, tl.where(x > high, high, x))
