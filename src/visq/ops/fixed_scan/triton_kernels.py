"""The recurrence of the fixed-point scans in integers. A program takes one image and a block of channels.

What is float32 is done before and after it. Names and formulas are those of `visq.integer`, where the docs show that
32 bits hold every number but the products inside `exp2_fixed`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mulhrs(a, b):
    return (a * b + 16384) >> 15


@triton.jit
def bounded(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def exp2_fixed(f, COEFFICIENTS):
    """Returns 2^-f for f in Q16."""
    f = f.to(tl.int64)
    value = tl.load(COEFFICIENTS + 2).to(tl.int64) - ((f * tl.load(COEFFICIENTS + 3).to(tl.int64)) >> 16)
    value = tl.load(COEFFICIENTS + 1).to(tl.int64) - ((f * value) >> 16)
    return (tl.load(COEFFICIENTS).to(tl.int64) - ((f * value) >> 16)).to(tl.int32)


@triton.jit
def ladder_powers(r, n, ratio, N: tl.constexpr):
    """Returns r^(n + 1) * ratio, for r [C, 1] in Q15 and n [1, N]; the last bits of n say which factors it has."""
    square = mulhrs(r, r)
    fourth = mulhrs(square, square)
    eighth = mulhrs(fourth, fourth)
    power = tl.where(n % 2 == 0, mulhrs(r, ratio), mulhrs(square, ratio))
    power = tl.where(n % 4 >= 2, mulhrs(power, square), power)
    power = tl.where(n % 8 >= 4, mulhrs(power, fourth), power)
    for group in tl.static_range(1, (N + 7) // 8):
        power = tl.where(n // 8 >= group, mulhrs(power, eighth), power)
    return power


@triton.jit
def recurrence(
    D, W, BETA, G, CODES, A, COEFFICIENTS, STEP, LIFT, ABAR_TABLE, BBAR_TABLE, SUMS, channels,
    FORM: tl.constexpr, SHIFT: tl.constexpr, POINT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    KEPT: tl.constexpr, ABAR_FRACTION: tl.constexpr, ABAR_HIGH: tl.constexpr, ABAR_BITS: tl.constexpr,
    BBAR_LOW: tl.constexpr, BBAR_HIGH: tl.constexpr, BBAR_BITS: tl.constexpr, TABLE_A: tl.constexpr,
    TABLE_B: tl.constexpr, L: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the sums over states [B, L, d_inner] int32: of the state's codes, or of the sums before their rounding.

    D holds d, of a ladder r. STEP holds a step's decay, of a ladder its ratio. COEFFICIENTS are those of each step in
    the fused form.
    """
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, WIDTH)
    has_c, has_n = c < channels, n < N
    has = has_c[:, None] & has_n[None, :]
    a = tl.zeros([BLOCK, WIDTH], tl.int32)
    if FORM != "ladder":
        a = tl.load(A + c[:, None] * N + n[None, :], mask=has, other=0)
    h = tl.zeros([BLOCK, WIDTH], tl.int32)
    for t in range(L):
        row = b * L + t
        d = tl.load(D + row * channels + c, mask=has_c, other=0)[:, None]
        g = tl.load(G + row * channels + c, mask=has_c, other=0)[:, None]
        beta = tl.load(BETA + row * N + n, mask=has_n, other=0)[None, :]
        code = tl.load(CODES + row * N + n, mask=has_n, other=0)[None, :]
        step, lift = tl.load(STEP + t), tl.load(LIFT + t)
        if FORM == "ladder":
            power = ladder_powers(d, n[None, :], step, N)
        else:
            exponent = d * a
            at = COEFFICIENTS
            if FORM == "fused":
                at = COEFFICIENTS + 4 * t
            power = exp2_fixed((exponent >> (SHIFT - 16)) & 0xFFFF, at) >> tl.minimum(exponent >> SHIFT, 16)
        if FORM == "fixed":
            w = tl.load(W + row * channels + c, mask=has_c, other=0)[:, None]
            product = mulhrs(w, beta)
            if TABLE_A:
                power = tl.load(ABAR_TABLE + (power >> 1))
            else:
                power = tl.minimum((power + ((1 << ABAR_FRACTION) >> 1)) >> ABAR_FRACTION, ABAR_HIGH)
                power = power << (16 - ABAR_BITS)
            if TABLE_B:
                drive = tl.load(BBAR_TABLE + (product + 32768))
            else:
                drive = bounded((product + (1 << (11 - BBAR_BITS))) >> (12 - BBAR_BITS), BBAR_LOW, BBAR_HIGH)
                drive = drive << (16 - BBAR_BITS)
            kept = (power * step) >> 16
            total = (((h << (POINT + 1 + lift)) * kept) >> 16) + mulhrs(drive, g)
        else:
            kept = (((h << (POINT + 2)) * power) >> 16) << lift
            total = bounded(kept, -KEPT, KEPT) + mulhrs(beta, g)
        h = bounded((total + (1 << (POINT - 1))) >> POINT, LOW, HIGH)
        read = h if FORM == "fixed" else total
        tl.store(SUMS + row * channels + c, tl.sum(read * code, 1), mask=has_c)
