"""The selective scan of the engine: in fixed point where all of it is quantized, in float32 otherwise.

Both are written for one image, rows in scan order, as a loop over time. docs/integer-semantics.md derives the formats
and shows that nothing overflows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visq.runtime.arithmetic import LOG2E, Floats, Ints, exp2, exp2_q15, midpoints, mulhrs, to_int16
from visq.runtime.quantizers import Factor, Quantizer, StateQuantizer

#: A step adds q Abar and the input in units of 2^-POINT of a code of the state.
POINT = 19
#: The state's scale may shrink up to 2^SHRINK times from one step to the next.
SHRINK = 3


@dataclass(frozen=True)
class FixedScan:
    """Parameters of the fixed-point recurrence.

    Attributes:
        delta_scale: d = int16(delta * delta_scale), 0 where delta is negative.
        a: [C, N], -A log2(e) in fixed point, 16 bits unsigned; e = (d a) >> shift, and 15 bits after the point.
        abar_inverse, abar_fraction, abar_high, abar_bits: uniform Abar; or abar_lut [32768] in Q15.
        decay [L]: Abar's code (or its Q15 value) times decay is Abar times the ratio of the scales of steps t-1 and t,
            in Q14 less what `lift` has more than POINT - 14.
        lift [L]: bits the state's codes are shifted left by, POINT - 14 and what the ratio needs.
        drive_channel [C], beta_scale: Bbar before rounding is int16(delta * drive_channel) int16(B * beta_scale), and 0
            where delta is negative.
        bbar_fraction, bbar_low, bbar_high, bbar_bits: uniform Bbar; or bbar_lut [65536].
        input_channel [C], input_step [L]: g = int16(u * input_channel * input_step).
        C_zero [L]: C's integers plus this are bytes.
        state_low, state_high: range of the state's codes.
        y_channel [C], y_step [L]: y = sum * y_channel * y_step.
    """

    delta_scale: np.float32
    a: Ints
    shift: int
    abar_inverse: int
    abar_fraction: int
    abar_high: int
    abar_bits: int
    abar_lut: Ints | None
    decay: Ints
    lift: Ints
    drive_channel: Floats
    beta_scale: np.float32
    bbar_fraction: int
    bbar_low: int
    bbar_high: int
    bbar_bits: int
    bbar_lut: Ints | None
    input_channel: Floats
    input_step: Floats
    C_zero: Ints
    state_low: int
    state_high: int
    y_channel: Floats
    y_step: Floats


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
    largest_delta, largest_a = float(delta.largest().max()), float((-A).max()) * float(LOG2E)
    if not (largest_delta > 0 and (A < 0).all()):
        return "delta or A is degenerate"
    if h.low < -128 or h.high > 127 or (bbar.table is None and bbar.high >= 2 ** (bbar.bits - 1)):
        return "the state or Bbar has unsigned codes"
    delta_bits = min(math.floor(math.log2(32767 / largest_delta)), 30)
    a_bits = min(math.floor(math.log2(65535 / largest_a)), 31 - delta_bits)
    shift = delta_bits + a_bits
    if shift < 16:
        return "delta * A spans too wide a range"

    step = np.broadcast_to(h.step, length).astype(np.float64)
    ratio = np.concatenate([[1.0], step[:-1] / step[1:]])
    excess = np.clip(np.ceil(np.log2(ratio * (1 + 2.0**-8))), 0, SHRINK)
    if abar.table is None:
        abar_fraction = math.floor(math.log2(32767 * float(abar.step)))
        if abar_fraction < 1 or abar_fraction > 15:
            return "Abar has too coarse or too fine a scale"
        abar_inverse, abar_lut = round(2**abar_fraction / float(abar.step)), None
        decay = ratio * float(abar.step) * 2.0 ** (14 + abar.bits - excess)
    else:
        abar_inverse = abar_fraction = 0
        points = np.arange(32768, dtype=np.float32) * np.float32(2**-15)
        values = abar.table[nearest(abar.table, points)]
        abar_lut = np.clip(np.rint(values * np.float32(32768)), 0, 32767).astype(np.int64)
        decay = ratio * 2.0 ** (14 - excess)

    # Bbar's divisors s: (delta / s) B is what is rounded, and u s what it is multiplied with. delta / s was at most 1
    # in calibration (visq.quant.inner), whatever delta's codes may reach; it saturates at 2.
    drive_bits = 14 if (bbar.channel != 1).any() else delta_bits
    if bbar.table is None:
        bbar_fraction = 12 - bbar.bits
        unit, bbar_lut = float(bbar.step) * 2.0 ** (bbar.bits - 16), None
        beta = 2.0 ** (15 - drive_bits + bbar_fraction) / float(bbar.step)
    else:
        bbar_fraction = 0
        largest = float(np.abs(bbar.table).max())
        unit, beta = largest / 32767, 2.0 ** (15 - drive_bits + 13) / largest
        points = (np.arange(65536, dtype=np.float32) - np.float32(32768)) * np.float32(largest * 2**-13)
        bbar_lut = np.rint(bbar.table[nearest(bbar.table, points)] / np.float32(unit)).astype(np.int64)

    with np.errstate(over="ignore"):
        drive_channel = np.broadcast_to(2.0**drive_bits / bbar.channel, len(A)).astype(np.float32)
        input_channel = (bbar.channel / h.channel).astype(np.float32)
    if not (np.isfinite(drive_channel).all() and np.isfinite(input_channel).all()):
        return "scales of Bbar or of the state are too small for float32"

    C_step = C.step_channel if C.step_token is None else C.step_token * C.step_channel
    return FixedScan(
        delta_scale=np.float32(2.0**delta_bits),
        a=np.rint(-A.astype(np.float64) * float(LOG2E) * 2.0**a_bits).astype(np.int64),
        shift=shift,
        abar_inverse=abar_inverse,
        abar_fraction=abar_fraction,
        abar_high=abar.high,
        abar_bits=abar.bits,
        abar_lut=abar_lut,
        decay=np.clip(np.rint(decay), 0, 32767).astype(np.int64),
        lift=(POINT - 14 + excess).astype(np.int64),
        drive_channel=drive_channel,
        beta_scale=np.float32(beta),
        bbar_fraction=bbar_fraction,
        bbar_low=bbar.low,
        bbar_high=bbar.high,
        bbar_bits=bbar.bits,
        bbar_lut=bbar_lut,
        input_channel=input_channel,
        input_step=(unit * 2.0**POINT / step).astype(np.float32),
        C_zero=np.broadcast_to(C.zero.astype(np.int64) + C.offset, length),
        state_low=h.low,
        state_high=h.high,
        y_channel=h.channel,
        y_step=(step.astype(np.float32) * C_step).astype(np.float32),
    )


def fixed_scan(scan: FixedScan, u: Floats, delta: Floats, B: Floats, C: Ints) -> Floats:
    """u, delta [L, C] decoded; B [L, N] float32; C [L, N] integers (codes less zero point); all in scan order.
    Returns y [L, C]."""
    d = np.maximum(to_int16(delta * scan.delta_scale), 0)
    w = np.maximum(to_int16(delta * scan.drive_channel), 0)
    beta = to_int16(B * scan.beta_scale)
    g = to_int16((u * scan.input_channel) * scan.input_step[:, None])
    q = np.zeros_like(scan.a)
    y = np.empty(u.shape, np.float32)
    for t in range(len(u)):
        kept = _abar(scan, d[t, :, None] * scan.a, scan.decay[t])
        drive = _bbar(scan, mulhrs(w[t, :, None], beta[t]))
        total = (q << scan.lift[t]) * kept + drive * g[t, :, None]
        q = np.clip((total + (1 << (POINT - 1))) >> POINT, scan.state_low, scan.state_high)
        y[t] = ((q * C[t]).sum(-1).astype(np.float32) * scan.y_channel) * scan.y_step[t]
    return y


def _abar(scan: FixedScan, exponent: Ints, decay: Ints) -> Ints:
    """Abar, quantized, of the exponent e in fixed point, times `decay`: 0..32767."""
    whole = exponent >> scan.shift
    value = exp2_q15((exponent >> (scan.shift - 15)) & 0x7FFF) >> np.minimum(whole, 15)
    if scan.abar_lut is not None:
        return mulhrs(scan.abar_lut[value], decay)
    code = mulhrs(value, np.int64(scan.abar_inverse))
    code = np.minimum((code + (1 << (scan.abar_fraction - 1))) >> scan.abar_fraction, scan.abar_high)
    return mulhrs(code << (15 - scan.abar_bits), decay)


def _bbar(scan: FixedScan, value: Ints) -> Ints:
    """Bbar, quantized: its code in the high bits of 16, or the table's value."""
    if scan.bbar_lut is not None:
        return scan.bbar_lut[value + 32768]
    code = (value + (1 << (scan.bbar_fraction - 1))) >> scan.bbar_fraction
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
