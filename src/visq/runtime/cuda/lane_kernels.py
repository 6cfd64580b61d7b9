"""Fixed-point arithmetic in float32 whose results are exact, for scans that hold their states in registers.

A GPU multiplies and adds float32 twice as fast as int32. A product of two whole numbers of 16 bits has up to 32 bits,
but a fused multiply-add computes it in full. Added to a large number, it is rounded down to a whole one: a product and
a shift to the right in one instruction. Triton has no instruction that rounds down, so it is written in PTX; the
interpreter computes the same in float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from visq.runtime.cuda.kernels import INTERPRETED

#: float32 from 2^23 to 2^24 are the whole numbers. `WHOLE` plus any number of 22 bits is one of them.
WHOLE = 12582912.0
#: float32 from 2^22 to 2^23 are the multiples of 1/2.
HALVES = 6291456.0
#: KEPT plus a whole number and DRIVE plus a multiple of 1/2 add up to a float32 above 2^23, which is whole.
KEPT, DRIVE = 8454144.0, 4325376.0

_WHOLE, _HALVES = tl.constexpr(WHOLE), tl.constexpr(HALVES)


@triton.jit
def _down(x):
    """Returns float64 x rounded down to float32."""
    near = x.to(tl.float32)
    bits = near.to(tl.int32, bitcast=True)
    below = tl.where(near > 0, bits - 1, bits + 1).to(tl.float32, bitcast=True)
    return tl.where(near.to(tl.float64) > x, below, near)


@triton.jit
def floor_fma(a, b, c):
    """Returns a * b + c, computed in full and rounded down to float32; a is a tensor."""
    if INTERPRETED:
        return _down(a.to(tl.float64) * b + c)
    else:
        return tl.inline_asm_elementwise(
            "fma.rm.f32 $0, $1, $2, $3;", "=f,f,f,f", [a, b, c], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def floor_add(a, b):
    """Returns a + b rounded down to float32; a is a tensor."""
    if INTERPRETED:
        return _down(a.to(tl.float64) + b)
    else:
        return tl.inline_asm_elementwise(
            "add.rm.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def four(pointer):
    """Returns the four float32 or int32 that lie at a pointer, whose address is a multiple of 16."""
    if INTERPRETED:
        return tl.load(pointer), tl.load(pointer + 1), tl.load(pointer + 2), tl.load(pointer + 3)
    else:
        if pointer.dtype.element_ty == tl.float32:
            return tl.inline_asm_elementwise(
                "ld.global.v4.f32 {$0, $1, $2, $3}, [$4];", "=f,=f,=f,=f,l", [pointer.to(tl.int64)],
                dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
            )  # fmt: skip
        else:
            return tl.inline_asm_elementwise(
                "ld.global.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l", [pointer.to(tl.int64)],
                dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
            )  # fmt: skip


@triton.jit
def sum_of_group(x, GROUP: tl.constexpr):
    """Returns for each of 32 lanes the sum of int32 x over its group of GROUP lanes, at most 8."""
    if INTERPRETED:
        groups = tl.reshape(x, [32 // GROUP, GROUP])
        return tl.reshape(tl.broadcast_to(tl.sum(groups, 1)[:, None], [32 // GROUP, GROUP]), [32])
    else:
        if GROUP >= 2:
            x += _from_lane(x, "shfl.sync.bfly.b32 $0, $1, 1, 31, 0xffffffff;")
        if GROUP >= 4:
            x += _from_lane(x, "shfl.sync.bfly.b32 $0, $1, 2, 31, 0xffffffff;")
        if GROUP >= 8:
            x += _from_lane(x, "shfl.sync.bfly.b32 $0, $1, 4, 31, 0xffffffff;")
        return x


@triton.jit
def _from_lane(x, INSTRUCTION: tl.constexpr):
    return tl.inline_asm_elementwise(INSTRUCTION, "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def product(a, b, UNIT: tl.constexpr):
    """Returns `mulhrs` of a and b; a and the result are multiples of UNIT, a power of two, and b is divided by 2^15."""
    halves = floor_fma(a, b, (_HALVES + 0.5) * UNIT)
    return floor_add(halves, _HALVES * UNIT) - _WHOLE * UNIT


@triton.jit
def decay(e, c0, c1, c2, c3, SHIFT: tl.constexpr, UNIT: tl.constexpr, EXPONENT: tl.constexpr):
    """Returns `scan_kernels.decay` in multiples of UNIT = 2^EXPONENT; c0, c1 and c2 have WHOLE added to them.

    e is the exponent in fixed point with SHIFT fraction bits, int32.
    """
    f = (((e >> (SHIFT - 16)) & 0xFFFF) | 0x43000000).to(tl.float32, bitcast=True) - 128.0
    x = c2 - floor_fma(f, c3, _WHOLE)
    x = c1 - floor_fma(f, x, _WHOLE)
    x = c0 - floor_fma(f, x, _WHOLE)
    shift = ((127 + EXPONENT - tl.minimum(e >> SHIFT, 16)) << 23).to(tl.float32, bitcast=True)
    return floor_fma(x, shift, _WHOLE * UNIT) - _WHOLE * UNIT


@triton.jit
def kept(q, power, lift, LIFTS: tl.constexpr, LIMIT: tl.constexpr, BASE: tl.constexpr):
    """Returns BASE plus the state q times `power`, rounded down, times `lift` where any step has one."""
    x = floor_fma(q, power, BASE)
    if LIFTS:
        x = tl.minimum(tl.maximum((x - BASE) * lift, -LIMIT), LIMIT) + BASE
    return x


@triton.jit
def rounded(total, UNIT: tl.constexpr, LESS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Returns the state's code for a sum: the sum times UNIT, rounded half up.

    LESS is the sum's offset times UNIT, less the half that rounding adds.
    """
    code = floor_fma(total, UNIT, _WHOLE - LESS)
    return tl.minimum(tl.maximum(code, _WHOLE + LOW), _WHOLE + HIGH) - _WHOLE
