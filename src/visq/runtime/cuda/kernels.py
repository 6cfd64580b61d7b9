"""The engine's arithmetic in Triton: what generated kernels call. Names and formulas are those of `visq.integer`.

Kernels are launched with `enable_fp_fusion=False`, so every float32 operation is a single IEEE operation here too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from visq.integer.arithmetic import EXP2, GELU, GELU_END, GELU_T, GELU_TANH, LANES, LOG1P, LOG2E
from visq.runtime.cuda.device import interpreted

_LOG2E = tl.constexpr(float(LOG2E))
_GELU_RATE = tl.constexpr(float(LOG2E * type(LOG2E)(-0.5)))
_GELU_T, _GELU_END = tl.constexpr(float(GELU_T)), tl.constexpr(float(GELU_END))
_E0, _E1, _E2, _E3, _E4 = (tl.constexpr(float(c)) for c in EXP2)
_P0, _P1, _P2, _P3, _P4, _P5, _P6, _P7 = (tl.constexpr(float(c)) for c in LOG1P)
_G0, _G1, _G2, _G3, _G4 = (tl.constexpr(float(c)) for c in GELU)
_T0, _T1 = (tl.constexpr(float(c)) for c in GELU_TANH)
_LANES = tl.constexpr(LANES)
INTERPRETED = tl.constexpr(interpreted())
#: Adding it to a float32 below 2^22 and taking it away again rounds to a whole number, half to even.
_ROUNDER = tl.constexpr(12582912.0)


# --- numbers of few bits
#
# Where the compiler knows that int32 are small, it may add two of them in the halves of a register. For capability 9.0
# the assembler (CUDA 12.8 and 12.9) loses the number that is added if only one half is used afterwards. So kernels add
# to no number of which that is known; `engine.refuse_lost_sums` reads what became of them.


@triton.jit
def unknown(x):
    """Returns int32 x, of which the compiler then knows nothing."""
    if INTERPRETED:
        return x
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def less_zero(byte, zero):
    """Returns a byte less its zero point, float32; `zero` has 2^23 added to it, whose last digits the byte becomes."""
    return (byte.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - zero


@triton.jit
def less_128(byte):
    """Returns a byte less 128, int32, without a sum."""
    return (byte.to(tl.uint8) ^ 128).to(tl.int8, bitcast=True).to(tl.int32)


# --- float32


@triton.jit
def whole(x):
    """Returns x rounded half to even; from 2^22 on, a number that every clamp takes for x."""
    return (x + _ROUNDER) - _ROUNDER


@triton.jit
def clamp(x, low, high):
    """Returns x within low..high; NaN becomes `high`."""
    x = tl.where(x < high, x, high)
    return tl.where(x > low, x, low)


@triton.jit
def positive(x):
    """Returns max(x, 0); NaN stays NaN."""
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def inverse(x):
    return tl.math.div_rn(1.0, x)


@triton.jit
def exp2(x):
    x = clamp(x, -126.0, 126.0)
    n = whole(x)
    r = x - n
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + 1.0
    return p * ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def silu(x):
    return tl.math.div_rn(x, 1.0 + exp2(-x * _LOG2E))


@triton.jit
def softplus(x):
    t = exp2(-tl.abs(x) * _LOG2E)
    p = ((((((_P7 * t + _P6) * t + _P5) * t + _P4) * t + _P3) * t + _P2) * t + _P1) * t + _P0
    return positive(x) + t * p


@triton.jit
def gelu(x):
    a = tl.abs(x)
    a = tl.where(a > _GELU_END, _GELU_END, a)
    t = inverse(1.0 + _GELU_T * a)
    p = (((_G4 * t + _G3) * t + _G2) * t + _G1) * t + _G0
    tail = (p * t) * exp2((a * a) * _GELU_RATE)
    return positive(x) - a * tail


@triton.jit
def gelu_tanh(x):
    return tl.math.div_rn(x, 1.0 + exp2((x * x * _T1 + _T0) * x))


@triton.jit
def sigmoid(x):
    return inverse(1.0 + exp2(-x * _LOG2E))


@triton.jit
def power(score, largest):
    """Returns what a score has in a softmax before it is divided by the sum."""
    return exp2((score - largest) * _LOG2E)


@triton.jit
def count_below(x, THRESHOLDS, COUNT: tl.constexpr, STEPS: tl.constexpr):
    """Returns how many of COUNT ascending thresholds lie below x, int32; NaN has all of them below.

    THRESHOLDS holds 2^STEPS - 1 values, filled up with infinity.
    """
    found = tl.zeros(x.shape, tl.int32)
    for i in tl.static_range(STEPS):
        step = 1 << (STEPS - 1 - i)
        middle = tl.load(THRESHOLDS + found + (step - 1))
        found = tl.where(middle >= x, found, found + step)
    return tl.minimum(found, COUNT)


# --- sums over a row


@triton.jit
def fold(lanes):
    """Returns the sum of 16 lanes [R, 16] as [R, 1]: the upper half is added to the lower one until one is left."""
    R: tl.constexpr = lanes.shape[0]
    a, b = tl.split(tl.permute(tl.reshape(lanes, [R, 2, 8]), [0, 2, 1]))
    a, b = tl.split(tl.permute(tl.reshape(a + b, [R, 2, 4]), [0, 2, 1]))
    a, b = tl.split(tl.permute(tl.reshape(a + b, [R, 2, 2]), [0, 2, 1]))
    a, b = tl.split(a + b)
    return (a + b)[:, None]


@triton.jit
def sum_of_squares(X, row, has_row, W: tl.constexpr):
    """Returns `row_sum` of x^2 for rows [R, 1] of X [., W], as [R, 1]."""
    j = tl.arange(0, _LANES)[None, :]
    lanes = tl.zeros([row.shape[0], _LANES], tl.float32)
    for start in range(0, W, _LANES):
        x = tl.load(X + row * W + (start + j), mask=has_row & (start + j < W), other=0.0)
        lanes = lanes + x * x
    return fold(lanes)


@triton.jit
def row_mean(X, row, has_row, W: tl.constexpr):
    """Returns `row_sum` of x divided by W for rows [R, 1] of X [., W], as [R, 1]."""
    j = tl.arange(0, _LANES)[None, :]
    lanes = tl.zeros([row.shape[0], _LANES], tl.float32)
    for start in range(0, W, _LANES):
        lanes = lanes + tl.load(X + row * W + (start + j), mask=has_row & (start + j < W), other=0.0)
    return tl.math.div_rn(fold(lanes), W * 1.0)


@triton.jit
def row_variance(X, row, has_row, mean, W: tl.constexpr):
    """Returns `row_sum` of (x - mean)^2 divided by W for rows [R, 1] of X [., W], as [R, 1]."""
    j = tl.arange(0, _LANES)[None, :]
    lanes = tl.zeros([row.shape[0], _LANES], tl.float32)
    for start in range(0, W, _LANES):
        has = has_row & (start + j < W)
        x = tl.where(has, tl.load(X + row * W + (start + j), mask=has, other=0.0) - mean, 0.0)
        lanes = lanes + x * x
    return tl.math.div_rn(fold(lanes), W * 1.0)


@triton.jit
def butterflies(X, INVERSE, OUT, W: tl.constexpr, ORDER: tl.constexpr, RUNS: tl.constexpr, WIDE: tl.constexpr):
    """Writes a row of x * inverse after sums and differences at distances ORDER, 2 ORDER, ... < W = RUNS * ORDER.

    WIDE is the least power of two that is not below ORDER.
    """
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, WIDE)[None, :]
    column = tl.arange(0, RUNS)[:, None] * ORDER + j
    has = (j < ORDER) & (column < W)
    x = tl.load(X + row * W + column, mask=has, other=0.0) * tl.load(INVERSE + column, mask=has, other=0.0)
    for level in tl.static_range(12):
        if (1 << level) < RUNS:
            pairs = tl.reshape(x, [RUNS // (2 << level), 2, WIDE << level])
            first, second = tl.split(tl.permute(pairs, [0, 2, 1]))
            pairs = tl.permute(tl.join(first + second, first - second), [0, 2, 1])
            x = tl.reshape(pairs, [RUNS, WIDE])
    tl.store(OUT + row * W + column, x, mask=has)


@triton.jit
def rotated(X, MATRIX, row, column, has, W: tl.constexpr, ORDER: tl.constexpr):
    """Returns each run of ORDER values of X [., W] times a matrix [ORDER, ORDER], summed in the order of channels."""
    start, j = (column // ORDER) * ORDER, column % ORDER
    total = tl.zeros(has.shape, tl.float32)
    for k in range(ORDER):
        x = tl.load(X + row * W + (start + k), mask=has, other=0.0)
        total = total + x * tl.load(MATRIX + k * ORDER + j, mask=has, other=0.0)
    return total


# --- products and convolutions of bytes


@triton.jit
def bytes_product(X, WEIGHT, row, n, has_row, has_n, K: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr):
    """Returns sum_k (byte[k] - 128) weight[n, k], int32. X [., K]; WEIGHT [N, DEPTH] int8, zeros from K on."""
    total = tl.zeros([row.shape[0], n.shape[1]], tl.int32)
    j = tl.arange(0, CHUNK)
    for start in range(0, DEPTH, CHUNK):
        k = start + j
        x = tl.load(X + row * K + k[None, :], mask=has_row & (k[None, :] < K), other=128)
        w = tl.load(WEIGHT + n * DEPTH + k[:, None], mask=has_n & (k[:, None] < DEPTH), other=0)
        total = tl.dot((x ^ 128).to(tl.int8, bitcast=True), w, total, out_dtype=tl.int32)
    return total


@triton.jit
def nibbles_product(X, WEIGHT, row, n, has_row, has_n, K: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr):
    """Returns what `bytes_product` does. WEIGHT [N, DEPTH / 2] packs weights of 4 bits, two to a byte.

    In each CHUNK of K, byte i holds weight i in its low half and weight i + CHUNK / 2 in its high half.
    """
    HALF: tl.constexpr = CHUNK // 2
    total = tl.zeros([row.shape[0], n.shape[1]], tl.int32)
    j = tl.arange(0, HALF)
    for start in range(0, DEPTH, CHUNK):
        k = start + j
        low = tl.load(X + row * K + k[None, :], mask=has_row & (k[None, :] < K), other=128)
        high = tl.load(X + row * K + (k[None, :] + HALF), mask=has_row & (k[None, :] + HALF < K), other=128)
        at = start // 2 + j
        both = tl.load(WEIGHT + n * (DEPTH // 2) + at[:, None], mask=has_n & (at[:, None] < DEPTH // 2), other=0)
        total = tl.dot((low ^ 128).to(tl.int8, bitcast=True), (both << 4) >> 4, total, out_dtype=tl.int32)
        total = tl.dot((high ^ 128).to(tl.int8, bitcast=True), both >> 4, total, out_dtype=tl.int32)
    return total


@triton.jit
def wide_product(
    X, WEIGHT, TABLE, ZERO, FACTOR, row, n, has_row, has_n,
    K: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr, HAS_TABLE: tl.constexpr,
):  # fmt: skip
    """Returns sum_k value[k] weight[n, k], int32, for values of 16 bits: (table[byte] - zero[k]) factor[k].

    A value is 256 times its high byte plus its low one, which is 128 more than a signed byte.
    """
    high_sum = tl.zeros([row.shape[0], n.shape[1]], tl.int32)
    low_sum = tl.zeros([row.shape[0], n.shape[1]], tl.int32)
    weights = tl.zeros([1, n.shape[1]], tl.int32)
    j = tl.arange(0, CHUNK)
    for start in range(0, DEPTH, CHUNK):
        k = start + j
        has_k = k[None, :] < K
        x = tl.load(X + row * K + k[None, :], mask=has_row & has_k, other=0).to(tl.int32)
        if HAS_TABLE:
            x = tl.load(TABLE + x)
        x = x - tl.load(ZERO + k[None, :], mask=has_k, other=0)
        x = x * tl.load(FACTOR + k[None, :], mask=has_k, other=0)
        w = tl.load(WEIGHT + n * DEPTH + k[:, None], mask=has_n & (k[:, None] < DEPTH), other=0)
        high_sum = tl.dot((x >> 8).to(tl.int8), w, high_sum, out_dtype=tl.int32)
        low_sum = tl.dot(((x & 255) ^ 128).to(tl.int8), w, low_sum, out_dtype=tl.int32)
        weights += tl.sum(w.to(tl.int32), 0)[None, :]
    return (high_sum * 256 + low_sum) + weights * 128


@triton.jit
def window_product(
    X, WEIGHT, image, t, n, has_row, has_n, zero,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, ACROSS: tl.constexpr,
    KERNEL_X: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    K: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Returns `bytes_product` of windows of a map [HEIGHT, WIDTH, C]; bytes outside are `zero`.

    WEIGHT [N, DEPTH] has its K elements position by position, all channels of one together.
    """
    total = tl.zeros([t.shape[0], n.shape[1]], tl.int32)
    top, left = t // ACROSS * STRIDE_Y - TOP, t % ACROSS * STRIDE_X - LEFT
    j = tl.arange(0, CHUNK)
    for start in range(0, DEPTH, CHUNK):
        k = start + j
        place = k[None, :] // C
        y, x = top + place // KERNEL_X, left + place % KERNEL_X
        there = has_row & (k[None, :] < K) & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
        at = image * (HEIGHT * WIDTH) + y * WIDTH + x
        byte = tl.load(X + at * C + k[None, :] % C, mask=there, other=0).to(tl.int32)
        byte = tl.where(there, byte, zero) ^ 128  # in the lowest 8 bits, less 128
        w = tl.load(WEIGHT + n * DEPTH + k[:, None], mask=has_n & (k[:, None] < DEPTH), other=0)
        total = tl.dot(byte.to(tl.int8), w, total, out_dtype=tl.int32)
    return total


@triton.jit
def taps(
    X, WEIGHT, ZERO, row, t, c, has, L: tl.constexpr, W: tl.constexpr,
    TAPS: tl.constexpr, AHEAD: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Returns sum_k (byte[t - TAPS + 1 + AHEAD + k, c] - zero[c]) weight[c, k], int32; or the same backwards.

    t is the row in its sequence of L rows; rows outside add nothing.
    """
    total = tl.zeros(has.shape, tl.int32)
    zero = tl.load(ZERO + c, mask=c < W, other=0)
    for k in tl.static_range(TAPS):
        shift = (TAPS - 1 - AHEAD) - k if REVERSE else k - (TAPS - 1 - AHEAD)
        there = has & (t + shift >= 0) & (t + shift < L)
        x = tl.load(X + (row + shift) * W + c, mask=there, other=0).to(tl.int32) - zero
        w = tl.load(WEIGHT + c * TAPS + k, mask=c < W, other=0).to(tl.int32)
        total += tl.where(there, x * w, 0)
    return total


@triton.jit
def windows(
    X, WEIGHT, ZERO, image, t, c, has,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ACROSS: tl.constexpr, W: tl.constexpr,
    KERNEL: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """Returns the depthwise convolution of bytes over a map [HEIGHT, WIDTH, W], int32; what is outside adds nothing.

    ACROSS windows lie beside each other.
    """
    total = tl.zeros(has.shape, tl.int32)
    zero = tl.load(ZERO + c, mask=c < W, other=0)
    top, left = t // ACROSS - PADDING, t % ACROSS - PADDING
    for k in range(KERNEL * KERNEL):
        y, x = top + k // KERNEL, left + k % KERNEL
        there = has & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
        at = image * (HEIGHT * WIDTH) + y * WIDTH + x
        byte = tl.load(X + at * W + c, mask=there, other=0).to(tl.int32) - zero
        w = tl.load(WEIGHT + c * (KERNEL * KERNEL) + k, mask=c < W, other=0).to(tl.int32)
        total += tl.where(there, byte * w, 0)
    return total
