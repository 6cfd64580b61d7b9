"""The fixed-point arithmetic of scans in Triton; names and formulas are those of `visq.integer`."""

from __future__ import annotations

import triton
import triton.language as tl

from visq.runtime.cuda import kernels as k


@triton.jit
def mulhrs(a, b):
    return (a * b + 16384) >> 15


@triton.jit
def high_product(a, b):
    return (a * b) >> 16


@triton.jit
def to_int16(x):
    return k.clamp(k.whole(x), -32768.0, 32767.0).to(tl.int32)


@triton.jit
def limit(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def exp2_fixed(f, c0, c1, c2, c3):
    """Returns 2^-f of f in Q16, int32. Products of two numbers of 16 bits need all 32 bits, so they are unsigned."""
    f = f.to(tl.uint32)
    value = c2.to(tl.uint32) - ((f * c3.to(tl.uint32)) >> 16)
    value = c1.to(tl.uint32) - ((f * value) >> 16)
    return (c0.to(tl.uint32) - ((f * value) >> 16)).to(tl.int32)


@triton.jit
def decay(d, a, c0, c1, c2, c3, SHIFT: tl.constexpr):
    """Returns 2^-(d a), the exponent in fixed point with SHIFT fraction bits."""
    e = d * a
    return exp2_fixed((e >> (SHIFT - 16)) & 0xFFFF, c0, c1, c2, c3) >> tl.minimum(e >> SHIFT, 16)


@triton.jit
def ladder_powers(r, n, ratio, N: tl.constexpr):
    """Returns r^(n + 1) * ratio for r [C, 1] in Q15 and n [1, N'], in the units of `ratio`."""
    square = mulhrs(r, r)
    fourth = mulhrs(square, square)
    eighth = mulhrs(fourth, fourth)
    value = tl.where(n % 2 == 0, mulhrs(r, ratio), mulhrs(square, ratio))
    value = tl.where(n % 4 < 2, value, mulhrs(value, square))
    value = tl.where(n % 8 < 4, value, mulhrs(value, fourth))
    for group in tl.static_range(1, (N + 7) // 8):
        value = tl.where(n // 8 < group, value, mulhrs(value, eighth))
    return value


# --- a step of a scan: state h [C, N] int32, u and delta [C, 1], B and C [1, N]; returns h and y [C, 1] float32


@triton.jit
def _read_out(h, C, y_channel, y_step):
    y = tl.sum(h * C, 1).to(tl.float32)[:, None]
    return (y * y_channel) * y_step


@triton.jit
def _rounded(total, POINT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    return limit((total + (1 << (POINT - 1))) >> POINT, LOW, HIGH)


@triton.jit
def fused_step(
    h, power, lift, u, delta, B, C, beta_scale, input_channel, input_step, y_channel, y_step,
    POINT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, KEPT: tl.constexpr, INPUT: tl.constexpr,
):  # fmt: skip
    """A step without codes of Abar and Bbar; `power` is Abar times the ratio of scales."""
    beta = to_int16(B * beta_scale)
    g = limit(to_int16(((delta * u) * input_channel) * input_step), -INPUT, INPUT)
    kept = limit(high_product(h << (POINT + 2), power) << lift, -KEPT, KEPT)
    total = kept + mulhrs(beta, g)
    return _rounded(total, POINT, LOW, HIGH), _read_out(total, C, y_channel, y_step)


@triton.jit
def fixed_abar(d, a, c0, c1, c2, c3, TABLE, SHIFT: tl.constexpr, FRACTION: tl.constexpr, HIGH: tl.constexpr,
               BITS: tl.constexpr, HAS_TABLE: tl.constexpr):  # fmt: skip
    value = decay(d, a, c0, c1, c2, c3, SHIFT)
    if HAS_TABLE:
        return tl.load(TABLE + (value >> 1))
    else:
        return tl.minimum((value + ((1 << FRACTION) >> 1)) >> FRACTION, HIGH) << (16 - BITS)


@triton.jit
def fixed_bbar(value, TABLE, LOW: tl.constexpr, HIGH: tl.constexpr, BITS: tl.constexpr, HAS_TABLE: tl.constexpr):
    if HAS_TABLE:
        return tl.load(TABLE + (value + 32768))
    else:
        FRACTION: tl.constexpr = 12 - BITS
        return limit((value + (1 << (FRACTION - 1))) >> FRACTION, LOW, HIGH) << (16 - BITS)


@triton.jit
def fixed_step(
    h, abar, decay_step, lift, drive, g, C, y_channel, y_step,
    POINT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    """A step with codes of Abar and Bbar."""
    kept = high_product(abar, decay_step)
    total = high_product(h << (POINT + 1 + lift), kept) + mulhrs(drive, g)
    h = _rounded(total, POINT, LOW, HIGH)
    return h, _read_out(h, C, y_channel, y_step)


@triton.jit
def factor_code(x, inverse_step, step, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Returns x rounded to a code of Abar or Bbar, or of the state, and back."""
    return k.clamp(k.whole(x * inverse_step), LOW * 1.0, HIGH * 1.0) * step
