"""Chooses the form of a scan: fixed point with codes of Abar and Bbar, fused (with or without a ladder), or float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from visq.integer.arithmetic import Floats, Ints
from visq.integer.fixed_scan import FixedScan, fixed_scan, plan
from visq.integer.fused_scan import FusedScan, fuse, fused_scan
from visq.integer.ladder_scan import LadderScan, ladder, ladder_scan
from visq.integer.scan_steps import ScanCodecs

#: The forms of a scan in fixed point.
IntegerScan = FixedScan | FusedScan | LadderScan


def integer_form(length: int, A: Floats, codecs: ScanCodecs) -> IntegerScan | str:
    """Returns the fixed-point form of a scan of `length` steps, or the reason why it runs in float32. A is [C, N].

    The scan runs fused where delta, B, C and h have codes and Abar and Bbar have none; then a ladder is climbed.
    """
    stored = (codecs.delta, codecs.B, codecs.C, codecs.h)
    if codecs.abar is None and codecs.bbar is None and all(codec is not None for codec in stored):
        return (ladder if codecs.ladder else fuse)(length, A, codecs)
    return plan(length, A, codecs)


def in_sequences(form: IntegerScan, count: int) -> IntegerScan:
    """Returns the form of a scan of `count` sequences, one after the other, from that of one.

    Nothing decays into the first step of a sequence, so that it begins without a state.
    """
    per_step = ("lift", "beta_scale", "input_step", "C_zero", "y_step")
    steps: dict[str, Any] = {name: np.tile(getattr(form, name), count) for name in per_step}
    decays = {FixedScan: "decay", FusedScan: "power", LadderScan: "ratio"}[type(form)]
    steps[decays] = np.concatenate([getattr(form, decays)] * count)
    steps[decays][:: len(form.lift)] = 0
    return replace(form, **steps)


def integer_scan(scan: IntegerScan, u: Floats, delta: Floats, B: Floats, C: Ints) -> Floats:
    """Runs the recurrence of one image in scan order and returns y [L, C] float32.

    Arguments:
        u, delta: [L, C] float32, decoded.
        B: [L, N] float32, decoded.
        C: [L, N] integers, codes less their zero point.
    """
    if isinstance(scan, FixedScan):
        return fixed_scan(scan, u, delta, B, C)
    if isinstance(scan, LadderScan):
        return ladder_scan(scan, u, delta, B, C)
    return fused_scan(scan, u, delta, B, C)
