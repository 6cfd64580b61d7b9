"""Encodes and decodes a site's values as the engine does: codes are bytes, and encoding multiplies by reciprocals.

    byte = clamp(rint((x * inverse_channel[c]) * inverse_token[t]) + zero[t or c], low, high) + offset
    x    = float(byte - offset - zero) * step_channel[c] * step_token[t]

With a table, byte is the number of thresholds below x * inverse, and x = table[byte] * step. `offset` is 2^(b-1) for
signed codes and 0 for others, so that an unsigned byte holds every code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visq.errors import VisqError
from visq.integer.arithmetic import Floats, clamp, midpoints
from visq.integer.scales import fault_of_scale
from visq.integer.spec import Spec

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Codec:
    """The quantizer of an activation. Vectors are [1] (tensor), [width] (channel) or [rows] (token).

    Attributes:
        low, high: range of the codes.
        offset: added to a code to make it a byte.
        scale: [1] or [width], or [rows] where it is per token.
        smooth: [1] or [width], a factor of each channel's step.
        step_channel: [1] or [width], `smooth` times the scale where it is per channel or per tensor.
        inverse_channel: its reciprocal.
        step_token, inverse_token: [rows], the scale per token and its reciprocal, or None.
        zero: [1], [width] or [rows] integers as float32; 0 means none.
        zero_by_token: whether `zero` is per row.
        table, thresholds: [K] and [K - 1], or None.
    """

    low: int
    high: int
    offset: int
    scale: Floats
    smooth: Floats
    step_channel: Floats
    inverse_channel: Floats
    step_token: Floats | None
    inverse_token: Floats | None
    zero: Floats
    zero_by_token: bool
    table: Floats | None
    thresholds: Floats | None

    @property
    def factors_out(self) -> bool:
        """Returns whether a row's channels share one scale and zero point, `smooth` aside; False with a table."""
        by_token = self.step_token is not None
        return self.table is None and (by_token or self.scale.size == 1) and (self.zero_by_token or self.zero.size == 1)

    def encode(self, x: Floats, rows: NDArray[np.int64]) -> Bytes:
        """Returns the bytes of x [..., rows, width]; `rows` [rows] is the token number of each row."""
        x = x * self.inverse_channel
        if self.inverse_token is not None:
            x = x * self.inverse_token[rows][:, None]
        if self.table is not None and self.thresholds is not None:
            return np.searchsorted(self.thresholds, x, side="left").astype(np.uint8)
        q = clamp(np.rint(x) + self._zero(rows), self.low, self.high)
        return (q + np.float32(self.offset)).astype(np.uint8)

    def integers(self, codes: Bytes, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the codes less their zero point, int64: the operands of integer products."""
        return codes.astype(np.int64) - self.offset - self._zero(rows).astype(np.int64)

    def decode(self, codes: Bytes, rows: NDArray[np.int64]) -> Floats:
        """Returns the float32 values of bytes [..., rows, width]; `rows` as in `encode`."""
        x = self.integers(codes, rows).astype(np.float32) if self.table is None else self.table[codes]
        x = x * self.step_channel
        return x if self.step_token is None else x * self.step_token[rows][:, None]

    def largest(self) -> Floats:
        """Returns the largest magnitude that a code decodes to, for each channel: [1] or [width]."""
        token = np.float32(1) if self.step_token is None else self.step_token.max()
        if self.table is not None:
            return np.abs(self.table).max() * self.step_channel * token
        zero = self.zero if not self.zero_by_token else np.array([self.zero.min(), self.zero.max()], np.float32)
        spans = np.maximum(np.abs(self.low - zero), np.abs(self.high - zero))
        return (spans.max() if self.zero_by_token else spans) * self.step_channel * token

    def _zero(self, rows: NDArray[np.int64]) -> Floats:
        return self.zero[rows][:, None] if self.zero_by_token else self.zero


@dataclass(frozen=True)
class StateCodec:
    """The quantizer of the hidden state; its scale is step[t] * channel[c] * state[n], with steps in scan order.

    Attributes:
        step, channel, state: [L] or [1], [C] and [N].
        read_quantized: whether y reads the state after it is rounded.
    """

    low: int
    high: int
    bits: int
    step: Floats
    channel: Floats
    state: Floats
    read_quantized: bool


@dataclass(frozen=True)
class FactorCodec:
    """The quantizer of Abar or Bbar: uniform with one step, or with a table of values.

    Attributes:
        channel: [1] or [d_inner], divides the value before it is rounded; always 1 for Abar.
    """

    bits: int
    low: int
    high: int
    step: np.float32
    channel: Floats
    table: Floats | None


def make_codec(name: str, record: dict[str, Any], parts: dict[str, Any]) -> Codec:
    """Returns the codec of a site, made from its record in config.json and its tensors by short name.

    Raises:
        VisqError: parts that are missing or do not fit each other.
    """
    spec = Spec.model_validate(record["spec"])
    axis = record.get("axis")
    scale = _vector(name, parts, "scale")
    zero = _vector(name, parts, "zero_point") if "zero_point" in parts else np.zeros(1, np.float32)
    if "group" in parts:
        group = _vector(name, parts, "group").astype(np.int64)
        if group.size == 0 or group.min() < 0 or group.max() >= scale.size:
            raise VisqError(f"{name}.group does not index its scales")
        scale = scale[group]
        zero = zero[group] if zero.size > 1 else zero
    smooth = _vector(name, parts, "smooth") if "smooth" in parts else np.ones(1, np.float32)
    _check_scale(name, scale, smooth)
    by_token = axis == -2
    one = np.ones(1, np.float32)
    channel_scale = scale if axis in (None, -1) else one  # scales of a weight's rows stay in `scale`, for `Weight`
    if channel_scale.size > 1 and smooth.size > 1 and channel_scale.size != smooth.size:
        raise VisqError(f"{name}: scale and smooth have different sizes")
    step = (channel_scale * smooth).astype(np.float32)
    table = _vector(name, parts, "table") if "table" in parts else None
    signed = spec.symmetric and spec.signed
    return Codec(
        low=0 if table is not None else spec.qmin,
        high=spec.qmax if table is None else table.size - 1,
        offset=2 ** (spec.bits - 1) if signed and table is None else 0,
        scale=scale,
        smooth=smooth,
        step_channel=step,
        inverse_channel=np.float32(1) / step,
        step_token=scale if by_token else None,
        inverse_token=np.float32(1) / scale if by_token else None,
        zero=zero,
        zero_by_token=by_token and zero.size > 1,
        table=table,
        thresholds=None if table is None else midpoints(table),
    )


def make_state_codec(name: str, record: dict[str, Any], parts: dict[str, Any]) -> StateCodec:
    """Returns the codec of a hidden state; arguments and errors as in `make_codec`."""
    spec = Spec.model_validate(record["spec"])
    step, channel, state = (_vector(name, parts, part) for part in ("step", "channel", "state"))
    _check_scale(name, step, channel, state)
    return StateCodec(spec.qmin, spec.qmax, spec.bits, step, channel, state, bool(record["read_quantized"]))


def make_factor_codec(name: str, record: dict[str, Any], parts: dict[str, Any]) -> FactorCodec:
    """Returns the codec of Abar or Bbar; arguments and errors as in `make_codec`."""
    spec = Spec.model_validate(record["spec"])
    scale = _vector(name, parts, "scale")
    if scale.size != 1 or ("smooth" in parts and not spec.signed):
        raise VisqError(f"{name}: Abar and Bbar have one scale, and only Bbar (which is signed) divisors per channel")
    channel = _vector(name, parts, "smooth") if "smooth" in parts else np.ones(1, np.float32)
    _check_scale(name, scale, channel)
    table = (_vector(name, parts, "table") * scale).astype(np.float32) if "table" in parts else None
    return FactorCodec(spec.bits, spec.qmin, spec.qmax, scale[0], channel, table)


#: Parts that are factors of a scale, and so must be positive.
_POSITIVE = ("scale", "smooth", "step", "channel", "state")


def _check_scale(name: str, *factors: Floats) -> None:
    if fault := fault_of_scale(*factors):
        raise VisqError(f"{name}: its scale {fault}")


def _vector(name: str, parts: dict[str, Any], part: str) -> Floats:
    if part not in parts or parts[part].ndim != 1 or parts[part].size == 0:
        raise VisqError(f"{name}.{part} is missing or is no vector")
    values: Floats = parts[part].astype(np.float32)
    if not np.isfinite(values).all() or (part in _POSITIVE and fault_of_scale(values) is not None):
        raise VisqError(f"{name}.{part} holds values that no scale has")
    if part == "table" and (values.size > 256 or (np.diff(values) < 0).any()):
        raise VisqError(f"{name}.table must hold at most 256 ascending values")
    return values
