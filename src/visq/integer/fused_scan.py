"""Runs the selective scan in fixed point without codes of Abar and Bbar, which are never stored.

delta, A, B, C and the state have codes. Each step computes Abar = exp(delta A) and Bbar u = (delta u) B in 16 bits,
uses them at once and drops them. y reads the sum before it is rounded to the state's codes.
docs/integer-semantics.md derives the formats and shows that nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visq.integer.arithmetic import (
    Floats,
    Ints,
    exp2_coefficients,
    exp2_fixed,
    high_product,
    mulhrs,
    to_int16,
)
from visq.integer.scan_steps import (
    SHRINK,
    ExponentSteps,
    ScanCodecs,
    ScanSteps,
    exponent,
    read_out,
    step_ratios,
    token_step,
)

#: Limit of the input in fixed point: the sum of its term, the kept state and half a code then fits 16 bits.
INPUT_HIGH = 14335
#: Limit of the kept state (Abar times the state). It matters only where the state's scale shrinks by more than half.
KEPT_HIGH = 16384


@dataclass(frozen=True)
class FusedScan(ExponentSteps):
    """The parameters of the recurrence without codes of Abar and Bbar.

    g = int16(((delta * u) * input_channel) * input_step), and beta is B's code in the high bits of 16.

    Attributes:
        power: [L, 4], coefficients that give 2^-f times the ratio of the state's scales of steps t-1 and t, in Q14 less
            `lift` bits.
    """

    power: Ints


def fuse(length: int, A: Floats, codecs: ScanCodecs) -> FusedScan | str:
    """Returns the fused form of a scan of `length` steps, or the reason why it runs in float32. A is [C, N].

    delta, B, C and h must have codecs.
    """
    assert codecs.delta is not None
    found = exponent(A, codecs.delta)
    if found is None:
        return "delta * A spans too wide a range"
    shared = fused_steps(length, codecs)
    if isinstance(shared, str):
        return shared
    decay, steps = shared
    delta_scale, a, shift = found
    return FusedScan(
        delta_scale=delta_scale,
        a=a,
        shift=shift,
        power=np.array([exp2_coefficients(unit) for unit in decay], np.int64),
        **steps,
    )


def fused_steps(length: int, codecs: ScanCodecs) -> tuple[NDArray[np.float64], dict[str, Any]] | str:
    """Returns what the fused forms share, or the reason why the scan runs in float32.

    Returns:
        The ratio of the state's scales of steps t-1 and t [length] in Q14 less `lift` bits, and fields of `ScanSteps`.
    """
    B, C, h = codecs.B, codecs.C, codecs.h
    assert B is not None and C is not None and h is not None
    if h.read_quantized:
        return "y reads the state after it is rounded"
    if (h.state != 1).any():
        return "the state has a scale per state"
    if h.low < -(2 ** (h.bits - 1)) or h.high >= 2 ** (h.bits - 1):
        return "the state has unsigned codes"
    for name, x in (("B", B), ("C", C)):
        if not x.factors_out or (x.smooth != 1).any():
            return f"{name} is not uniform with one scale per token"

    step, ratio = step_ratios(h, length)
    lift = np.clip(np.ceil(np.log2(ratio)) - 1, 0, SHRINK - 1)

    point = 14 - h.bits
    B_step = np.broadcast_to(token_step(B), length)
    reach = np.maximum(np.abs(B.low - B.zero), np.abs(B.high - B.zero)).max()
    up = 2.0 ** np.floor(np.log2(32768 / float(reach)))  # scales a code of B up to 16 bits
    with np.errstate(over="ignore"):
        beta_scale = (up / B_step.astype(np.float64)).astype(np.float32)
        input_channel = (1 / h.channel.astype(np.float64)).astype(np.float32)
        input_step = (B_step / up * 2.0 ** (15 + point) / step).astype(np.float32)
    if not (np.isfinite(beta_scale).all() and np.isfinite(input_channel).all() and np.isfinite(input_step).all()):
        return "scales of B or of the state are too small for float32"
    return np.minimum(ratio * 2.0 ** (14 - lift), 32767), {
        "lift": lift.astype(np.int64),
        "beta_scale": beta_scale,
        "input_channel": input_channel,
        "input_step": input_step,
        "point": point,
        **read_out(C, h, length),
    }


def fused_scan(scan: FusedScan, u: Floats, delta: Floats, B: Floats, C: Ints) -> Floats:
    """Runs the scan of one image and returns y [L, C] float32; arguments as in `integer_scan`."""
    d = np.maximum(to_int16(delta * scan.delta_scale), 0)

    def power(t: int) -> Ints:
        e = d[t, :, None] * scan.a
        fraction = exp2_fixed((e >> (scan.shift - 16)) & 0xFFFF, tuple(scan.power[t]))
        return fraction >> np.minimum(e >> scan.shift, 16)

    return fused_recurrence(scan, power, u, delta, B, C)


def fused_recurrence(
    scan: ScanSteps, power: Callable[[int], Ints], u: Floats, delta: Floats, B: Floats, C: Ints
) -> Floats:
    """Runs the recurrence of one image, given Abar times the ratio of scales, and returns y [L, C] float32.

    Arguments:
        power: step t -> [C, N] in Q14 less `lift` bits.
        others: as in `integer_scan`.
    """
    beta = to_int16(B * scan.beta_scale[:, None])
    g = to_int16(((delta * u) * scan.input_channel) * scan.input_step[:, None])
    g = np.clip(g, -INPUT_HIGH, INPUT_HIGH)
    q = np.zeros(scan.shape, np.int64)
    y = np.empty(u.shape, np.float32)
    for t in range(len(u)):
        # The power is in Q14, so that scales may shrink by half. The state takes the high bits of 16.
        kept = high_product(q << (scan.point + 2), power(t)) << scan.lift[t]
        total = np.clip(kept, -KEPT_HIGH, KEPT_HIGH) + mulhrs(beta[t], g[t, :, None])
        q = np.clip((total + (1 << (scan.point - 1))) >> scan.point, scan.state_low, scan.state_high)
        unit = np.float32(2.0**-scan.point)
        y[t] = ((total * C[t]).sum(-1).astype(np.float32) * (scan.y_channel * unit)) * scan.y_step[t]
    return y
