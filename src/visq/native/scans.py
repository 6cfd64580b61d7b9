"""Hands a scan's parameters to the C++ engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from visq.integer.arithmetic import LOG2E, midpoints
from visq.integer.codecs import FactorCodec
from visq.integer.float_scan import FloatScan
from visq.integer.fused_scan import FusedScan
from visq.integer.ladder_scan import LadderScan
from visq.integer.scans import IntegerScan
from visq.native.memory import empty, flat

#: Fields of FixedScan that are single numbers.
_SCAN_NUMBERS = (
    "abar_fraction",
    "abar_high",
    "abar_bits",
    "bbar_low",
    "bbar_high",
    "bbar_bits",
    "state_low",
    "state_high",
    "point",
)


def add_integer_scan(engine: Any, tensors: list[int], y: int, reverse: bool, form: IntegerScan) -> None:
    """Starts the operation of a scan in fixed point.

    Arguments:
        tensors: the engine's indices of u, delta, B, C.
        y: the engine's index of the result.
    """
    floats = ("input_channel", "y_channel", "beta_scale", "input_step", "y_step")
    shared: dict[str, Any] = {"lift": flat(form.lift, np.int16), **{name: flat(getattr(form, name)) for name in floats}}
    if isinstance(form, LadderScan):
        rate, ratio = flat(form.rate), flat(form.ratio, np.int32)
        engine.ladder_scan(*tensors, y, reverse, shared, rate, ratio, form.state_low, form.state_high, form.point)
        return
    shared |= {"shift": form.shift, "a": flat(form.a, np.int32), "delta_scale": flat(form.delta_scale)}
    if isinstance(form, FusedScan):
        power = flat(form.power, np.int32)
        engine.fused_scan(*tensors, y, reverse, shared, power, form.state_low, form.state_high, form.point)
        return
    lut = np.zeros(0, np.int16)
    engine.fixed_scan(
        *tensors,
        y,
        reverse,
        {name: int(getattr(form, name)) for name in _SCAN_NUMBERS},
        shared,
        np.array(form.abar_power, np.int32),
        lut if form.abar_lut is None else flat(form.abar_lut, np.uint16).view(np.int16),
        lut if form.bbar_lut is None else flat(form.bbar_lut, np.int16),
        flat(form.drive_channel),
        flat(form.decay, np.int32),
    )


def add_float_scan(engine: Any, tensors: list[int], y: int, reverse: bool, rows: int, form: FloatScan) -> None:
    """Starts the operation of a scan in float32 over `rows` rows; other arguments as in `add_integer_scan`."""
    h, none, width = form.h, empty(), len(form.A)
    channel = np.ones(1, np.float32) if form.bbar is None else form.bbar.channel
    engine.float_scan(
        *tensors,
        y,
        reverse,
        flat(form.A * LOG2E),
        _factor(form.abar),
        _factor(form.bbar),
        flat(np.broadcast_to(channel, width)),
        flat(np.broadcast_to(np.float32(1) / channel, width)),
        none if h is None else flat(np.broadcast_to(h.step, rows)),
        none if h is None else flat(h.channel[:, None] * h.state),
        0 if h is None else h.low,
        0 if h is None else h.high,
        h is None or h.read_quantized,
    )


def _factor(factor: FactorCodec | None) -> dict[str, Any]:
    """Returns the rounding of Abar or Bbar as the extension takes it: kind 0 is none, 1 uniform, 2 by a table."""
    none = empty()
    if factor is None:
        return {"kind": 0, "step": 1.0, "inverse": 1.0, "low": 0.0, "high": 0.0, "table": none, "thresholds": none}
    table = none if factor.table is None else factor.table
    return {
        "kind": 1 if factor.table is None else 2,
        "step": float(factor.step),
        "inverse": float(np.float32(1) / factor.step),
        "low": float(factor.low),
        "high": float(factor.high),
        "table": flat(table),
        "thresholds": none if factor.table is None else flat(midpoints(table)),
    }
