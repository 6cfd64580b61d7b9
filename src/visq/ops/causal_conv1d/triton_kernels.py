"""The kernels of the causal convolution. A program takes one image, a block of tokens and a block of channels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    X, WEIGHT, BIAS, Y, x_batch, x_row, D,
    L: tl.constexpr, TAPS: tl.constexpr, HAS_BIAS: tl.constexpr, TURNED: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes y [B, L, D]; TURNED convolves over the future, which is how the gradient of x arises from that of y."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    has = (t < L)[:, None] & (d < D)[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    if HAS_BIAS:
        total += tl.load(BIAS + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(TAPS):
        source = t + (TAPS - 1 - k if TURNED else k - TAPS + 1)
        cells = b * x_batch + source[:, None] * x_row + d[None, :]
        x = tl.load(X + cells, mask=((source >= 0) & (source < L))[:, None] & (d < D)[None, :], other=0.0)
        total += tl.load(WEIGHT + d * TAPS + k, mask=d < D, other=0.0).to(tl.float32)[None, :] * x.to(tl.float32)
    tl.store(Y + (b * L + t[:, None]) * D + d[None, :], total.to(Y.dtype.element_ty), mask=has)


@triton.jit
def backward(
    X, GRAD_Y, GRAD, x_batch, x_row, grad_batch, grad_row, D,
    L: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the sums over tokens: GRAD [B, TAPS + 1, D] has the gradients of the taps, and last that of the bias."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    has = d < D
    for k in tl.static_range(TAPS + 1):
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, L, ROWS):
            t = start + tl.arange(0, ROWS)
            grad = tl.load(
                GRAD_Y + b * grad_batch + t[:, None] * grad_row + d[None, :],
                mask=(t < L)[:, None] & has[None, :],
                other=0.0,
            ).to(tl.float32)
            if k < TAPS:
                source = t + (k - TAPS + 1)
                inside = ((source >= 0) & (t < L))[:, None] & has[None, :]
                x = tl.load(X + b * x_batch + source[:, None] * x_row + d[None, :], mask=inside, other=0.0)
                grad = grad * x.to(tl.float32)
            total += tl.sum(grad, 0)
        tl.store(GRAD + (b * (TAPS + 1) + k) * D + d, total, mask=has)
