"""Runs the selective scan in fixed point with codes of Abar and Bbar, which the papers simulate.

The scan takes one image with rows in scan order and loops over time. docs/integer-semantics.md derives the formats and
shows that nothing overflows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from visq.integer.arithmetic import (
    Floats,
    Ints,
    exp2_coefficients,
    exp2_fixed,
    high_product,
    mulhrs,
    nearest,
    to_int16,
)
from visq.integer.scan_steps import SHRINK, ExponentSteps, ScanCodecs, exponent, read_out, step_ratios

#: Limits of delta and of the input before they are multiplied, so that no sum leaves 16 bits.
DELTA_HIGH, INPUT_HIGH = 31743, 16375


@dataclass(frozen=True)
class FixedScan(ExponentSteps):
    """The parameters of the recurrence with codes of Abar and Bbar; g = int16(u * input_channel * input_step).

    Attributes:
        abar_power: coefficients of 2^-f, in units of 2^-abar_fraction of a code of Abar, or in Q16 with a table.
        abar_fraction, abar_high, abar_bits: describe a uniform Abar.
        abar_lut: [32768], Abar in Q16 by its unrounded value in Q15; None for a uniform Abar.
        decay: [L]; (Abar * decay) >> 16 is Abar times the ratio of the state's scales of steps t-1 and t, in Q15 less
            `lift` bits. `Abar` is here its code in the high bits of 16, or its value in Q16.
        drive_channel: [C]; Bbar before rounding is int16(delta * drive_channel) beta, and 0 where delta is negative.
        bbar_low, bbar_high, bbar_bits: describe a uniform Bbar. Before rounding it has 12 - bbar_bits fraction bits.
        bbar_lut: [65536], the rounded Bbar by its unrounded value plus 32768; None for a uniform Bbar.
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


def plan(length: int, A: Floats, codecs: ScanCodecs) -> FixedScan | str:
    """Returns the fixed-point form of a scan of `length` steps, or the reason why it runs in float32. A is [C, N]."""
    delta, C, abar, bbar, h = codecs.delta, codecs.C, codecs.abar, codecs.bbar, codecs.h
    if delta is None or C is None or abar is None or bbar is None or h is None:
        names = {"delta": delta, "C": C, "Abar": abar, "Bbar": bbar, "h": h}
        return "not quantized: " + ", ".join(name for name, value in names.items() if value is None)
    if not h.read_quantized:
        return "y reads the state before it is rounded"
    if (h.state != 1).any():
        return "the state has a scale per state"
    if not C.factors_out or (C.smooth != 1).any():
        return "C is not uniform with one scale per token"
    if h.high >= 2 ** (h.bits - 1) or (bbar.table is None and bbar.high >= 2 ** (bbar.bits - 1)):
        return "the state or Bbar has unsigned codes"
    found = exponent(A, delta)
    if found is None:
        return "delta * A spans too wide a range"
    delta_scale, a, shift = found

    step, ratio = step_ratios(h, length)
    lift = np.clip(np.ceil(np.log2(ratio)), 0, SHRINK)
    if abar.table is None:
        # Abar is at most 1, so its code is at most 1 / scale. Rounding adds half a code.
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

    # Bbar's divisors s: the rounded product is (delta / s) B, and it multiplies u s. Calibration kept delta / s
    # at most 1 (visq.quant.discretized). delta's codes may reach further, so it saturates at 2.
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
        # The limit keeps Abar times decay below 1 in Q15.
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


def fixed_scan(scan: FixedScan, u: Floats, delta: Floats, B: Floats, C: Ints) -> Floats:
    """Runs the scan of one image and returns y [L, C] float32; arguments as in `integer_scan`."""
    d = np.maximum(to_int16(delta * scan.delta_scale), 0)
    w = np.clip(to_int16(delta * scan.drive_channel), 0, DELTA_HIGH)
    beta = to_int16(B * scan.beta_scale[:, None])
    g = np.clip(to_int16((u * scan.input_channel) * scan.input_step[:, None]), -INPUT_HIGH, INPUT_HIGH)
    q = np.zeros_like(scan.a)
    y = np.empty(u.shape, np.float32)
    for t in range(len(u)):
        kept = high_product(_abar(scan, d[t, :, None] * scan.a), scan.decay[t])
        drive = _bbar(scan, mulhrs(w[t, :, None], beta[t]))
        # Rounding down loses half a unit on average. Rounding half up below gains as much.
        total = high_product(q << (scan.point + 1 + scan.lift[t]), kept) + mulhrs(drive, g[t, :, None])
        q = np.clip((total + (1 << (scan.point - 1))) >> scan.point, scan.state_low, scan.state_high)
        y[t] = ((q * C[t]).sum(-1).astype(np.float32) * scan.y_channel) * scan.y_step[t]
    return y


def _abar(scan: FixedScan, exponent: Ints) -> Ints:
    """Returns the quantized Abar of a fixed-point exponent: its code in the high bits of 16, or the table's value."""
    power = exp2_fixed((exponent >> (scan.shift - 16)) & 0xFFFF, scan.abar_power)
    value = power >> np.minimum(exponent >> scan.shift, 16)
    if scan.abar_lut is not None:
        return scan.abar_lut[value >> 1]
    code = np.minimum((value + (1 << (scan.abar_fraction - 1))) >> scan.abar_fraction, scan.abar_high)
    return code << (16 - scan.abar_bits)


def _bbar(scan: FixedScan, value: Ints) -> Ints:
    """Returns the quantized Bbar of `value`: its code in the high bits of 16, or the table's value."""
    if scan.bbar_lut is not None:
        return scan.bbar_lut[value + 32768]
    fraction = 12 - scan.bbar_bits
    code = (value + (1 << (fraction - 1))) >> fraction
    return np.clip(code, scan.bbar_low, scan.bbar_high) << (16 - scan.bbar_bits)
