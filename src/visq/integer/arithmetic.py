"""Defines the arithmetic of the engine in NumPy: one function for each operation of docs/integer-semantics.md.

Every float32 operation is rounded by itself (no fused multiply-add), and every sum has a fixed order. So the C++ code
gives the same bits on every instruction set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
#: Codes of weights: int8, or int16 where they do not fit into int8.
Codes = NDArray[np.integer]

LOG2E = np.float32(1.44269504088896341)
#: Coefficients of 2^r = ((((c0 r + c1) r + c2) r + c3) r + c4) r + 1 for |r| <= 1/2; relative error 2e-7.
EXP2 = tuple(
    map(
        np.float32,
        (1.326472731307149e-3, 9.671512991189957e-3, 5.550733581185341e-2, 0.24022242426872253, 0.6931470036506653),
    )
)
#: Coefficients of log1p(t) = t (c0 + t (c1 + ...)) for 0 <= t <= 1, minimax in relative error (2e-7; 4e-7 with
#: float32 rounding).
LOG1P = tuple(
    map(
        np.float32,
        (
            0.9999998054173769,
            -0.49997404443567883,
            0.33275470060354423,
            -0.24495420885334337,
            0.17745151404011458,
            -0.1076807111839376,
            0.04408908674371943,
            -0.008539096660709065,
        ),
    )
)
#: Coefficients of the normal distribution's tail, Phi(-a) = t (c0 + t (c1 + ...)) e^(-a^2 / 2) for a >= 0, with
#: t = 1 / (1 + GELU_T a) (Abramowitz and Stegun 26.2.17, |error| < 7.5e-8).
GELU_T = np.float32(0.2316419)
GELU = tuple(map(np.float32, (0.12741479, -0.14224837, 0.71070687, -0.72657601, 0.53070271)))
#: Larger |x| count as this: the tail adds nothing there, and a^2 and e^(-a^2 / 2) stay in range.
GELU_END = np.float32(13)
#: The exponent of `gelu_tanh` is (c0 + c1 x^2) x: -2 sqrt(2 / pi) log2(e), and 0.044715 times that.
GELU_TANH = (np.float32(-2.302208198144325), np.float32(-0.1029432395800235))
#: `row_sum` adds a row in this many lanes.
LANES = 16

#: Coefficients of 2^-f = 1 - f (c1 - f (c2 - f c3)) for 0 <= f <= 1; error 6.3e-5.
EXP2_FRACTION = (0.6918363, 0.2319359, 0.0401634)


def clamp(x: Floats, low: float, high: float) -> Floats:
    """Returns x within low..high; NaN becomes `high`, so that every conversion to integers is defined."""
    return np.fmax(np.fmin(x, np.float32(high)), np.float32(low))


def exp2(x: Floats) -> Floats:
    """Returns 2^x, float32; x is clamped to [-126, 126]."""
    x = clamp(x, -126, 126)
    whole = np.rint(x)
    r = x - whole
    p = np.full_like(r, EXP2[0])
    for c in (*EXP2[1:], np.float32(1)):
        p = p * r + c
    scale = ((whole.astype(np.int32) + 127) << 23).view(np.float32)
    return p * scale


def silu(x: Floats) -> Floats:
    """Returns x / (1 + e^-x), float32."""
    return x / (np.float32(1) + exp2(-x * LOG2E))


def softplus(x: Floats) -> Floats:
    """Returns log(1 + e^x), computed as max(x, 0) + log1p(e^-|x|)."""
    t = exp2(-np.abs(x) * LOG2E)
    p = np.full_like(t, LOG1P[-1])
    for c in LOG1P[-2::-1]:
        p = p * t + c
    return np.maximum(x, np.float32(0)) + t * p


def gelu(x: Floats) -> Floats:
    """Returns x Phi(x), computed as max(x, 0) - |x| Phi(-|x|)."""
    a = np.minimum(np.abs(x), GELU_END)
    t = np.float32(1) / (np.float32(1) + GELU_T * a)
    p = np.full_like(t, GELU[-1])
    for c in GELU[-2::-1]:
        p = p * t + c
    tail = (p * t) * exp2((a * a) * (LOG2E * np.float32(-0.5)))
    return np.maximum(x, np.float32(0)) - a * tail


def gelu_tanh(x: Floats) -> Floats:
    """Returns GELU's approximation by tanh, x / (1 + e^-(2 t)) with t = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return x / (np.float32(1) + exp2((x * x * GELU_TANH[1] + GELU_TANH[0]) * x))


def sigmoid(x: Floats) -> Floats:
    """Returns 1 / (1 + e^-x), float32."""
    return np.float32(1) / (np.float32(1) + exp2(-x * LOG2E))


def relu(x: Floats) -> Floats:
    """Returns 0 for negative x, x otherwise; NaN and -0 stay."""
    return np.where(x < 0, np.float32(0), x)


def row_sum(x: Floats) -> Floats:
    """Returns the sum over the last axis, [..., 1].

    Lane j adds x[j], x[j + 16], ... in order. Then the upper half of the lanes is added to the lower half,
    until one lane is left.
    """
    width = x.shape[-1]
    padded = np.zeros((*x.shape[:-1], -(-width // LANES) * LANES), np.float32)
    padded[..., :width] = x
    lanes = np.zeros((*x.shape[:-1], LANES), np.float32)
    for start in range(0, padded.shape[-1], LANES):
        lanes = lanes + padded[..., start : start + LANES]
    half = LANES // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    return lanes


def quarter_turn(x: Floats) -> Floats:
    """Returns (-b, a) of each pair (a, b) of neighbouring channels. [..., C] -> same."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return np.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Returns x / sqrt(mean(x^2) + eps) * weight, the mean taken over the last axis."""
    mean = row_sum(x * x) * np.float32(1 / x.shape[-1])
    return x * (np.float32(1) / np.sqrt(mean + np.float32(eps))) * weight


def layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    """Returns (x - mean) / sqrt(variance + eps) * weight + bias, both statistics taken over the last axis."""
    width = np.float32(x.shape[-1])
    x = x - row_sum(x) / width
    variance = row_sum(x * x) / width
    return x * (np.float32(1) / np.sqrt(variance + np.float32(eps))) * weight + bias


def mean(x: Floats) -> Floats:
    """Returns the mean of the rows of x [L, C] as [1, C]; the rows are added in their order."""
    total = np.zeros((1, x.shape[1]), np.float32)
    for row in x:
        total = total + row
    return total / np.float32(len(x))


def product(x: Floats, weight: Floats) -> Floats:
    """Returns x [..., K] times the transpose of weight [N, K], as [..., N]; terms are added in the order of K."""
    total = np.zeros((*x.shape[:-1], weight.shape[0]), np.float32)
    for k in range(weight.shape[1]):
        total = total + x[..., k, None] * weight[:, k]
    return total


def runs_of(width: int, order: int) -> int:
    """Returns width / order where this is a power of two, 0 otherwise: the runs of `order` channels in a row."""
    runs, rest = divmod(width, order) if order else (0, 0)
    return 0 if rest or runs & (runs - 1) else runs


def rotate(x: Floats, inverse_divisor: Floats, matrix: Floats) -> Floats:
    """Returns (x * inverse_divisor) (H x matrix) for x [..., C] and matrix [m, m]; H x matrix is a Kronecker product.

    First come sums and differences at distances m, 2 m, 4 m, ... < C. Then each run of m channels is multiplied by
    `matrix`.
    """
    x = x * inverse_divisor
    order, width = len(matrix), x.shape[-1]
    distance = order
    while distance < width:
        pairs = x.reshape(*x.shape[:-1], width // (2 * distance), 2, distance)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([first + second, first - second], -2).reshape(x.shape)
        distance *= 2
    return product(x.reshape(*x.shape[:-1], width // order, order), matrix.T).reshape(x.shape)


def midpoints(table: Floats) -> Floats:
    """Returns the midpoints [K - 1] of neighbouring entries of an ascending table [K].

    A value belongs to entry i of the table where i midpoints lie below it.
    """
    return (table[1:] + table[:-1]) / np.float32(2)


def nearest(table: Floats, x: Floats) -> NDArray[np.int64]:
    """Returns the index of the nearest entry of an ascending table, ties to the lower one; for NaN the last index."""
    return np.searchsorted(midpoints(table), x, side="left")


def mulhrs(a: Ints, b: Ints) -> Ints:
    """Returns (a b + 2^14) >> 15, the rounded product of two Q15 numbers."""
    return (a * b + (1 << 14)) >> 15


def to_int16(x: Floats) -> Ints:
    """Returns x rounded half to even and saturated, within -32768..32767."""
    return clamp(np.rint(x), -32768, 32767).astype(np.int64)


def high_product(a: Ints, b: Ints) -> Ints:
    """Returns (a b) >> 16, the product of two Q16 numbers, rounded down."""
    return (a * b) >> 16


def exp2_coefficients(unit: float) -> tuple[int, int, int, int]:
    """Returns the coefficients with which `exp2_fixed` gives 2^-f in units of 1 / unit; unit is at most 65536."""
    c0, c1, c2, c3 = (min(round(unit * c), 65535) for c in (1.0, *EXP2_FRACTION))
    return c0, c1, c2, c3


def exp2_fixed(f: Ints, coefficients: tuple[int, int, int, int]) -> Ints:
    """Returns 2^-f for f in Q16 from 0 to 65535, within 6 of the units that the coefficients were made for."""
    c0, c1, c2, c3 = coefficients
    return c0 - high_product(f, c1 - high_product(f, c2 - high_product(f, np.int64(c3))))
