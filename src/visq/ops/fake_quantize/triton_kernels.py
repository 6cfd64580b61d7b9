"""The kernel of simulated quantization, to the bit: single IEEE operations, never fused."""

from __future__ import annotations

import triton
import triton.language as tl

from visq.ops._shared.triton_kernels import clamp, one_over, rint


@triton.jit
def forward(
    X, SCALE, ZERO, SMOOTH, Y, x_batch, x_row, L, C, qmin, qmax,
    AXIS: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_SMOOTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes y [B, L, C] for a block of tokens and channels of one image."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    has = (t < L)[:, None] & (c < C)[None, :]
    at = t[:, None] * 0 + c[None, :] * 0
    if AXIS == "channel":
        at += c[None, :]
    if AXIS == "token":
        at += t[:, None]
    step = tl.load(SCALE + at, mask=has, other=1.0)
    x = tl.load(X + b * x_batch + t[:, None] * x_row + c[None, :], mask=has, other=0.0)
    smooth = tl.full([ROWS, BLOCK], 1.0, tl.float32)
    if HAS_SMOOTH:
        smooth = tl.load(SMOOTH + c[None, :] + t[:, None] * 0, mask=has, other=1.0)
        if AXIS == "token":
            x = x * one_over(smooth)
        else:
            step = step * smooth
    x = x * one_over(step)
    zero = tl.zeros([ROWS, BLOCK], tl.float32)
    if HAS_ZERO:
        zero = tl.load(ZERO + at, mask=has, other=0.0)
    y = clamp(rint(x) + zero, qmin * 1.0, qmax * 1.0) - zero
    if HAS_SMOOTH and AXIS == "token":
        y = y * smooth
    tl.store(Y + (b * L + t[:, None]) * C + c[None, :], y * step, mask=has)
