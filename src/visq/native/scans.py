"""Writes a scan's parameters into a flat file."""

from __future__ import annotations

import numpy as np

from visq.integer.arithmetic import LOG2E, midpoints
from visq.integer.codecs import FactorCodec
from visq.integer.float_scan import FloatScan
from visq.integer.fused_scan import FusedScan
from visq.integer.ladder_scan import LadderScan
from visq.integer.scans import IntegerScan
from visq.native.flat_file import FlatFile
from visq.native.memory import empty, flat

#: Fields of FixedScan that are single numbers, in the order of the file.
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


def add_integer_scan(file: FlatFile, tensors: list[int], y: int, reverse: bool, form: IntegerScan) -> None:
    """Starts the operation of a scan in fixed point.

    Arguments:
        tensors: the file's indices of u, delta, B, C.
        y: the file's index of the result.
    """
    floats = ("input_channel", "y_channel", "beta_scale", "input_step", "y_step")
    shared = (*(flat(getattr(form, name)) for name in floats), flat(form.lift, np.int16))
    if isinstance(form, LadderScan):
        limits = (int(form.state_low), int(form.state_high), int(form.point))
        file.add("ladder_scan", *tensors, y, reverse, *shared, flat(form.rate), flat(form.ratio, np.int32), *limits)
        return
    exponents = (int(form.shift), flat(form.a, np.int32), flat(form.delta_scale))
    if isinstance(form, FusedScan):
        limits = (int(form.state_low), int(form.state_high), int(form.point))
        power = flat(form.power, np.int32)
        file.add("fused_scan", *tensors, y, reverse, *shared, *exponents, power, *limits)
        return
    lut = np.zeros(0, np.int16)
    file.add(
        "fixed_scan",
        *tensors,
        y,
        reverse,
        *(int(getattr(form, name)) for name in _SCAN_NUMBERS),
        *shared,
        *exponents,
        np.array(form.abar_power, np.int32),
        lut if form.abar_lut is None else flat(form.abar_lut, np.uint16).view(np.int16),
        lut if form.bbar_lut is None else flat(form.bbar_lut, np.int16),
        flat(form.drive_channel),
        flat(form.decay, np.int32),
    )


def add_float_scan(file: FlatFile, tensors: list[int], y: int, reverse: bool, rows: int, form: FloatScan) -> None:
    """Starts the operation of a scan in float32 over `rows` rows; other arguments as in `add_integer_scan`.

    Steps of the state's scale are repeated for each sequence.
    """
    h, none, width = form.h, empty(), len(form.A)
    channel = np.ones(1, np.float32) if form.bbar is None else form.bbar.channel
    file.add(
        "float_scan",
        *tensors,
        y,
        reverse,
        flat(form.A * LOG2E),
        *_factor(form.abar),
        *_factor(form.bbar),
        flat(np.broadcast_to(channel, width)),
        flat(np.broadcast_to(np.float32(1) / channel, width)),
        none if h is None else flat(np.tile(h.step, rows // h.step.size)),
        none if h is None else flat(h.channel[:, None] * h.state),
        0.0 if h is None else float(h.low),
        0.0 if h is None else float(h.high),
        h is None or h.read_quantized,
    )


def _factor(factor: FactorCodec | None) -> tuple[int | float | np.ndarray, ...]:
    """Returns the rounding of Abar or Bbar: kind, step, its reciprocal, low, high, table, thresholds.

    Kind 0 is none, 1 uniform, 2 by a table.
    """
    none = empty()
    if factor is None:
        return 0, 1.0, 1.0, 0.0, 0.0, none, none
    scales = (float(factor.step), float(np.float32(1) / factor.step), float(factor.low), float(factor.high))
    if factor.table is None:
        return 1, *scales, none, none
    return 2, *scales, flat(factor.table), flat(midpoints(factor.table))
