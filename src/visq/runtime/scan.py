"""The selective scan of the engine: in fixed point where all of it is quantized, in float32 otherwise.

Both are written for one image, rows in scan order, as a loop over time. docs/integer-semantics.md derives the formats
and shows that nothing overflows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visq.runtime.arithmetic import (
    LOG2E,
    Floats,
    Ints,
    exp2,
    exp2_coefficients,
    exp2_fixed,
    high_product,
    midpoints,
    mulhrs,
    to_int16,
)
from visq.runtime.quantizers import Factor, Quantizer, StateQuantizer

#: The state's scale may shrink up to 2^SHRINK times from one step to the next.
SHRINK = 3
#: Limits of delta and of the input where they are multiplied, so that no sum leaves 16 bits.
DELTA_HIGH, INPUT_HIGH = 31743, 16375


@dataclass(frozen=True)
class ScanSteps:
    """Parameters that the forms of the fixed-point recurrence share.

    Attributes:
        delta_scale [C]: d = int16(delta * delta_scale), 0 where delta is negative.
        a: [C, N], -A log2(e) / delta_scale in fixed point, 16 bits unsigned; the exponent is d a, `shift` bits of it
            after the point.
        lift [L]: bits by which what is kept of the state grows where its scale shrinks from one step to the next.
        beta_scale [L]: beta = int16(B * beta_scale).
        input_channel [C], input_step [L]: of g, the input in fixed point.
        C_zero [L]: C's integers plus this are bytes.
        state_low, state_high: range of the state's codes; a step adds up in units of 2^-point of a code.
        y_channel [C], y_step [L]: y = sum * y_channel * y_step, the sum in codes of the state.
    """

    delta_scale: Floats
    a: Ints
    shift: int
    lift: Ints
    beta_scale: Floats
    input_channel: Floats
    input_step: Floats
    C_zero: Ints
    state_low: int
    state_high: int
    point: int
    y_channel: Floats
    y_step: Floats


@dataclass(frozen=True)
class FixedScan(ScanSteps):
    """Parameters of the recurrence with codes of Abar and Bbar; g = int16(u * input_channel * input_step).

    Attributes:
        abar_power: coefficients of 2^-f in units of 2^-abar_fraction of Abar's code, or in Q16 where there is a table.
        abar_fraction, abar_high, abar_bits: uniform Abar; or abar_lut [32768] of Q15, its values in Q16.
        decay [L]: Abar, its code in the high bits of 16 or its value in Q16, times decay is Abar times the ratio of the
            scales of steps t-1 and t in Q15, less `lift` bits.
        drive_channel [C]: Bbar before rounding is int16(delta * drive_channel) beta, and 0 where delta is negative.
        bbar_low, bbar_high, bbar_bits: uniform Bbar, whose product has 12 - bbar_bits bits after the point of a code;
            or bbar_lut [65536].
    """

    abar_power: tuple[int, int, int, int]
    abar_fraction: int
    abar_high: int
    abar_bits: int
    abar_lut: Ints | None
    decay: Ints
    drive_channel: Floats
    bbar_low: int
    bbar_high: int
    bbar_bits: int
    bbar_lut: Ints | None


def plan(
    length: int,
    A: Floats,
    delta: Quantizer | None,
    C: Quantizer | None,
    abar: Factor | None,
    bbar: Factor | None,
    h: StateQuantizer | None,
) -> FixedScan | str:
    """The fixed-point form of a scan, or why it has none and runs in float32."""
    if delta is None or C is None or abar is None or bbar is None or h is None:
        names = {"delta": delta, "C": C, "Abar": abar, "Bbar": bbar, "h": h}
        return "not quantized: " + ", ".join(name for name, value in names.items() if value is None)
    if not h.read_quantized:
        return "y reads the state before it is rounded"
    if (h.state != 1).any():
        return "the state has a scale per state"
    if not C.factors_out or (C.smooth != 1).any():
        return "C is not uniform with one scale per token"
    if h.low < -128 or h.high > 127 or (bbar.table is None and bbar.high >= 2 ** (bbar.bits - 1)):
        return "the state or Bbar has unsigned codes"
    found = exponent(A, delta)
    if found is None:
        return "delta * A spans too wide a range"
    delta_scale, a, shift = found

    step, ratio = step_ratios(h, length)
    lift = np.clip(np.ceil(np.log2(ratio)), 0, SHRINK)
    if abar.table is None:
        # A code is at most 1 / scale, and half of one more may be added.
        abar_fraction = math.floor(math.log2(65535 / (1 / float(abar.step) + 0.5)))
        if abar_fraction < 1 or abar_fraction > 15:
            return "Abar has too coarse or too fine a scale"
        abar_power, abar_lut = exp2_coefficients(2**abar_fraction / float(abar.step)), None
        decay, largest = ratio * float(abar.step) * 2.0 ** (15 + abar.bits - lift), abar.high << (16 - abar.bits)
    else:
        abar_fraction, abar_power = 0, exp2_coefficients(65536)
        points = np.arange(32768, dtype=np.float32) * np.float32(2**-15)
        values = abar.table[nearest(abar.table, points)]
        abar_lut = np.clip(np.rint(values * np.float32(65536)), 0, 65535).astype(np.int64)
        decay, largest = ratio * 2.0 ** (15 - lift), int(abar_lut.max())

    # Bbar's divisors s: (delta / s) B is what is rounded, and u s what it is multiplied with. delta / s was at most 1
    # in calibration (visq.quant.inner), whatever delta's codes may reach; it saturates at 2.
    fitting = math.floor(math.log2(DELTA_HIGH / float(delta.largest().max())))
    drive_bits = 14 if (bbar.channel != 1).any() else min(fitting, 30)
    if bbar.table is None:
        unit, bbar_lut = float(bbar.step) * 2.0 ** (bbar.bits - 16), None
        beta = 2.0 ** (15 - drive_bits + 12 - bbar.bits) / float(bbar.step)
    else:
        reach = float(np.abs(bbar.table).max())
        unit, beta = reach / 32767, 2.0 ** (15 - drive_bits + 13) / reach
        points = (np.arange(65536, dtype=np.float32) - np.float32(32768)) * np.float32(reach * 2**-13)
        bbar_lut = np.rint(bbar.table[nearest(bbar.table, points)] / np.float32(unit)).astype(np.int64)

    with np.errstate(over="ignore"):
        drive_channel = np.broadcast_to(2.0**drive_bits / bbar.channel, len(A)).astype(np.float32)
        input_channel = (bbar.channel / h.channel).astype(np.float32)
    if not (np.isfinite(drive_channel).all() and np.isfinite(input_channel).all()):
        return "scales of Bbar or of the state are too small for float32"

    point = 12 - h.bits
    return FixedScan(
        delta_scale=delta_scale,
        a=a,
        shift=shift,
        abar_power=abar_power,
        abar_fraction=abar_fraction,
        abar_high=abar.high,
        abar_bits=abar.bits,
        abar_lut=abar_lut,
        # What Abar becomes has to stay below 1 in Q15.
        decay=np.minimum(np.rint(decay), min(((32768 << 16) - 1) // max(largest, 1), 65535)).astype(np.int64),
        lift=lift.astype(np.int64),
        drive_channel=drive_channel,
        beta_scale=np.full(length, beta, np.float32),
        bbar_low=bbar.low,
        bbar_high=bbar.high,
        bbar_bits=bbar.bits,
        bbar_lut=bbar_lut,
        input_channel=input_channel,
        input_step=(unit * 2.0 ** (15 + point) / step).astype(np.float32),
        point=point,
        **read_out(C, h, length),
    )


def step_ratios(h: StateQuantizer, length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The state's scale of each step, and that of the step before in units of it."""
    step = np.broadcast_to(h.step, length).astype(np.float64)
    return step, np.concatenate([[1.0], step[:-1] / step[1:]])


def token_step(x: Quantizer) -> Floats:
    """The scale of each row, or the one there is."""
    return x.step_channel if x.step_token is None else x.step_token * x.step_channel


def read_out(C: Quantizer, h: StateQuantizer, length: int) -> dict[str, Any]:
    """The parameters of `ScanSteps` that C and the state's codes make."""
    step = np.broadcast_to(h.step, length).astype(np.float32)
    return {
        "C_zero": np.broadcast_to(C.zero.astype(np.int64) + C.offset, length),
        "state_low": h.low,
        "state_high": h.high,
        "y_channel": h.channel,
        "y_step": (step * token_step(C)).astype(np.float32),
    }


def exponent(A: Floats, delta: Quantizer) -> tuple[Floats, Ints, int] | None:
    """delta_scale, a and shift of the exponent -delta A log2(e); None where delta or A is degenerate or too wide."""
    largest = np.broadcast_to(delta.largest(), len(A)).astype(np.float64)
    rate = -A.astype(np.float64) * float(LOG2E)
    if not ((largest > 0).all() and (rate > 0).all()):
        return None
    if delta.step_token is None and delta.table is None:
        # d is delta's code, exactly, times 2^spare where a would not fit into 16 bits otherwise: the exponent's whole
        # part is then the high half of the product, and its fraction the low one.
        step = np.broadcast_to(delta.step_channel, len(A)).astype(np.float64)
        spare = np.clip(np.ceil(np.log2(rate.max(1) * step * 65536 / 65535)), 0, None)
        if (largest / step * 2**spare <= 32767).all():
            a = np.rint(rate * (step * 2.0 ** (16 - spare))[:, None])
            return (2**spare / step).astype(np.float32), a.astype(np.int64), 16
    delta_bits = min(math.floor(math.log2(32767 / largest.max())), 30)
    a_bits = min(math.floor(math.log2(65535 / rate.max())), 31 - delta_bits)
    if delta_bits + a_bits < 17:
        return None
    scale = np.full(len(A), 2.0**delta_bits, np.float32)
    return scale, np.rint(rate * 2.0**a_bits).astype(np.int64), delta_bits + a_bits


def fixed_scan(scan: FixedScan, u: Floats, delta: Floats, B: Floats, C: Ints) -> Floats:
    """u, delta [L, C] decoded; B [L, N] float32; C [L, N] integers (codes less zero point); all in scan order.
    Returns y [L, C]."""
    d = np.maximum(to_int16(delta * scan.delta_scale), 0)
    w = np.clip(to_int16(delta * scan.drive_channel), 0, DELTA_HIGH)
    beta = to_int16(B * scan.beta_scale[:, None])
    g = np.clip(to_int16((u * scan.input_channel) * scan.input_step[:, None]), -INPUT_HIGH, INPUT_HIGH)
    q = np.zeros_like(scan.a)
    y = np.empty(u.shape, np.float32)
    for t in range(len(u)):
        kept = high_product(_abar(scan, d[t, :, None] * scan.a), scan.decay[t])
        drive = _bbar(scan, mulhrs(w[t, :, None], beta[t]))
        # Cutting off loses half a unit on average, which is what rounding half up gains below.
        total = high_product(q << (scan.point + 1 + scan.lift[t]), kept) + mulhrs(drive, g[t, :, None])
        q = np.clip((total + (1 << (scan.point - 1))) >> scan.point, scan.state_low, scan.state_high)
        y[t] = ((q * C[t]).sum(-1).astype(np.float32) * scan.y_channel) * scan.y_step[t]
    return y


def _abar(scan: FixedScan, exponent: Ints) -> Ints:
    """Abar, quantized, of the exponent in fixed point: its code in the high bits of 16, or the table's value."""
    power = exp2_fixed((exponent >> (scan.shift - 16)) & 0xFFFF, scan.abar_power)
    value = power >> np.minimum(exponent >> scan.shift, 16)
    if scan.abar_lut is not None:
        return scan.abar_lut[value >> 1]
    code = np.minimum((value + (1 << (scan.abar_fraction - 1))) >> scan.abar_fraction, scan.abar_high)
    return code << (16 - scan.abar_bits)


def _bbar(scan: FixedScan, value: Ints) -> Ints:
    """Bbar, quantized: its code in the high bits of 16, or the table's value."""
    if scan.bbar_lut is not None:
        return scan.bbar_lut[value + 32768]
    fraction = 12 - scan.bbar_bits
    code = (value + (1 << (fraction - 1))) >> fraction
    return np.clip(code, scan.bbar_low, scan.bbar_high) << (16 - scan.bbar_bits)


def float_scan(
    A: Floats,
    abar: Factor | None,
    bbar: Factor | None,
    h: StateQuantizer | None,
    u: Floats,
    delta: Floats,
    B: Floats,
    C: Floats,
) -> Floats:
    """The recurrence in float32 with the quantizers it has; arguments as in `fixed_scan`, C decoded."""
    A = A * LOG2E
    state = np.zeros_like(A)
    y = np.empty(u.shape, np.float32)
    scale = None if h is None else h.channel[:, None] * h.state
    steps = None if h is None else np.broadcast_to(h.step, len(u))
    w = delta
    if bbar is not None:
        w, u = delta * (np.float32(1) / bbar.channel), u * bbar.channel
    for t in range(len(u)):
        decay = _round_factor(exp2(delta[t, :, None] * A), abar)
        drive = _round_factor(w[t, :, None] * B[t], bbar)
        state = decay * state + drive * u[t, :, None]
        exact = state
        if h is not None and scale is not None and steps is not None:
            at = steps[t] * scale
            state = np.clip(np.rint(state * (np.float32(1) / at)), np.float32(h.low), np.float32(h.high)) * at
        read = exact if h is not None and not h.read_quantized else state
        total = np.zeros(len(A), np.float32)
        for n in range(A.shape[1]):
            total = total + C[t, n] * read[:, n]
        y[t] = total
    return y


def _round_factor(x: Floats, factor: Factor | None) -> Floats:
    if factor is None:
        return x
    if factor.table is not None:
        return factor.table[nearest(factor.table, x)]
    code = np.rint(x * (np.float32(1) / factor.step))
    return np.clip(code, np.float32(factor.low), np.float32(factor.high)) * factor.step


def nearest(table: Floats, x: Floats) -> NDArray[np.int64]:
    """Index of the nearest entry of an ascending table, ties to the lower one."""
    return np.searchsorted(midpoints(table), x, side="left")
