"""Chooses the arithmetic form of a product: integers where the operands allow it, otherwise float32 with the reason.

The oracle, the C++ engine and the simulation run the same forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from visq.errors import VisqError
from visq.integer.arithmetic import Codes, Floats, Ints
from visq.integer.attention import FloatAttention, IntegerAttention
from visq.integer.codecs import Codec
from visq.integer.fixed_scan import FixedScan
from visq.integer.float_scan import FloatScan
from visq.integer.fused_scan import FusedScan
from visq.integer.ladder_scan import LadderScan
from visq.integer.weights import Weight


@dataclass(frozen=True)
class IntegerLinear:
    """The product of bytes: x = (float(sum_k (byte[k] - zero[t]) weight[n, k]) * scale[n]) * token[t] + bias[n].

    Attributes:
        weight: [N, K] in -128..127.
        scale: [N].
        token: [rows] or None.
        zero: [1] or [rows], zero points of the bytes.
    """

    weight: Codes
    scale: Floats
    token: Floats | None
    zero: Ints
    bias: Floats


@dataclass(frozen=True)
class WideLinear:
    """The product of 16-bit values, for a power-of-two scale for each channel or a table of whole numbers.

    x = (float(sum_k value[k] weight[n, k]) * scale[n]) * token[t] + bias[n] with
    value[k] = (table[byte[k]] - zero[k]) factor[k]. Values fit into 16 bits and sums into 32.

    Attributes:
        weight: [N, K] in -128..127.
        table: [256], or None for the byte itself.
        zero, factor: [K].
        scale: [N].
        token: [rows] or None.
    """

    weight: Codes
    table: Ints | None
    zero: Ints
    factor: Ints
    scale: Floats
    token: Floats | None
    bias: Floats

    def values(self, codes: Ints) -> Ints:
        """Returns `value` of bytes [..., K], int64."""
        found: Ints = ((codes if self.table is None else self.table[codes]) - self.zero) * self.factor
        return found


@dataclass(frozen=True)
class FloatLinear:
    """The float32 product sum_k x[k] weight[n, k] + bias[n], added in the order of k; `reason` says why float32."""

    weight: Floats
    bias: Floats
    reason: str


@dataclass(frozen=True)
class IntegerConv1d:
    """The causal depthwise convolution over rows, in integers; rows before the first add nothing. weight is [C, K].

    x[c] = float(sum_k (byte[t-K+1+k, c] - zero[c]) weight[c, k]) * scale[c] + bias[c]
    """

    weight: Codes
    scale: Floats
    zero: Ints
    bias: Floats


@dataclass(frozen=True)
class FloatConv1d:
    """The causal depthwise convolution over rows, in float32; `reason` says why. weight is [C, K]."""

    weight: Floats
    bias: Floats
    reason: str


@dataclass(frozen=True)
class IntegerConv2d:
    """The depthwise convolution over a map, in integers; positions outside the map add nothing. weight is [C, K, K].

    x[c] = float(sum_k (byte[k, c] - zero[c]) weight[c, k]) * scale[c] + bias[c] over the positions k of a window
    """

    weight: Codes
    scale: Floats
    zero: Ints
    bias: Floats


@dataclass(frozen=True)
class FloatConv2d:
    """The depthwise convolution over a map, in float32; `reason` says why. weight is [C, K, K]."""

    weight: Floats
    bias: Floats
    reason: str


Integer = TypeVar("Integer", IntegerConv1d, IntegerConv2d)
Floating = TypeVar("Floating", FloatConv1d, FloatConv2d)
Form = (
    IntegerLinear
    | WideLinear
    | FloatLinear
    | IntegerConv1d
    | FloatConv1d
    | IntegerConv2d
    | FloatConv2d
    | FixedScan
    | FusedScan
    | LadderScan
    | FloatScan
    | IntegerAttention
    | FloatAttention
    | None
)


def linear(
    x: Codec | None, weight: Weight | Floats, bias: Floats, rounded_before: bool = False
) -> IntegerLinear | WideLinear | FloatLinear:
    """Returns the form of a product of an input and a weight's rows.

    The form's token scales and zero points keep the order they have in the site.

    Raises:
        VisqError: the weight is rotated, and the product has no integer form.
    """
    matrix = codes_or_values(weight)
    matrix = matrix.reshape(matrix.shape[0], -1)
    why = ""
    if x is None and rounded_before:
        why = "the input's map was rounded before its windows were taken"
    elif x is None:
        why = "the input is not quantized"
    elif not isinstance(weight, Weight):
        why = "the weight is not quantized"
    elif matrix.min() < -128 or matrix.max() > 127:
        why = "the weight's codes do not fit into 8 bits"
    elif not np.allclose(x.smooth * weight.smooth, 1, rtol=1e-4):
        why = "the input's smoothing is not undone by the weight's"
    elif not x.factors_out:
        if isinstance(wide := _wide(x, matrix, weight.scale, bias), WideLinear):
            return wide
        why = wide
    if x is not None and isinstance(weight, Weight) and not why:
        scale = np.broadcast_to(weight.scale, len(matrix))
        return IntegerLinear(
            weight=matrix,
            scale=scale.copy() if x.step_token is not None else scale * x.scale,
            token=x.step_token,
            zero=x.zero.astype(np.int64) + x.offset,
            bias=bias,
        )
    if isinstance(weight, Weight) and weight.rotation is not None:
        raise VisqError(f"a rotated weight needs an integer product, but {why}")
    return _float_linear(weight, bias, why)


def dense_conv2d(x: Codec | None, weight: Weight | Floats, bias: Floats) -> IntegerLinear | FloatLinear:
    """Returns the form of a convolution that mixes channels, as a product over windows [channels, *kernel].

    It is in integers where the input has one scale for all and a zero point among its bytes, which then lies outside.
    """
    if x is not None:
        zero = x.zero + np.float32(x.offset)
        one = x.table is None and x.step_token is None and x.scale.size == x.zero.size == 1 and (x.smooth == 1).all()
        if not (one and 0 <= zero[0] <= 255):
            return _float_linear(weight, bias, "the input's map was rounded before its windows were taken")
    form = linear(x, weight, bias)
    assert not isinstance(form, WideLinear)  # that form is for several scales, or a table
    return form


def _float_linear(weight: Weight | Floats, bias: Floats, why: str) -> FloatLinear:
    values = values_of(weight)
    return FloatLinear(np.ascontiguousarray(values.reshape(len(values), -1), np.float32), bias, why)


def _wide(x: Codec, matrix: Codes, weight_scale: Floats, bias: Floats) -> WideLinear | str:
    """Returns the form for an input whose values are whole multiples of one unit, or the reason why there is none."""
    width = matrix.shape[1]
    table, unit, factor = None, np.float64(1), np.ones(1, np.int64)
    if x.table is not None:
        if (found := _whole(x.table)) is None:
            return "the input has a table of other than whole numbers"
        table, unit = found
    if x.step_token is None:
        smallest = x.scale.min()
        mantissa, exponent = np.frexp(x.scale / smallest)
        if (mantissa != 0.5).any():
            return "the input has a scale per channel that is no power of two of another"
        factor, unit = 2 ** (exponent.astype(np.int64) - 1), unit * smallest
    elif x.zero.size > 1 and not x.zero_by_token:
        return "the input has scales per token and zero points per channel"
    if table is None and x.zero_by_token:
        return "the input has scales per channel and zero points per token"
    if max(x.scale.size if x.step_token is None else 1, x.zero.size) not in (1, width):
        return "the input's scales are not those of its channels"
    zero = np.zeros(1, np.int64) if table is not None else x.zero.astype(np.int64) + x.offset
    form = WideLinear(
        weight=matrix,
        table=table,
        zero=np.broadcast_to(zero, width).copy(),
        factor=np.broadcast_to(factor, width).copy(),
        scale=(np.broadcast_to(weight_scale, len(matrix)) * np.float32(unit)).astype(np.float32),
        token=x.step_token,
        bias=bias,
    )
    reach = np.stack([form.values(np.full(width, byte)) for byte in range(256)])
    if np.abs(reach).max() > 32767 or 128 * np.abs(reach).max(0).sum() >= 2**31:
        return "the input's values do not fit into 16 bits, or their sums into 32"
    return form


def _whole(table: Floats) -> tuple[Ints, np.float64] | None:
    """Returns whole numbers [256] and a unit whose products are the table's entries; None where there are none.

    The smallest gap of the table is tried as the unit. Tables of several steps have it around zero, where float32 is
    finest.
    """
    values = table.astype(np.float64)
    gaps = np.diff(values)
    if not (gaps > 0).any():
        return None
    whole = np.rint(values / gaps[gaps > 0].min())
    largest = np.abs(whole).argmax()
    if not 0 < abs(whole[largest]) <= 32767:
        return None
    unit = values[largest] / whole[largest]
    if np.abs(whole * unit - values).max() > 1e-6 * np.abs(values).max():
        return None
    return np.pad(whole, (0, 256 - len(whole)), mode="edge").astype(np.int64), unit


def depthwise(
    x: Codec | None,
    weight: Weight | Floats,
    bias: Floats,
    integer: type[Integer],
    floating: type[Floating],
) -> Integer | Floating:
    """Returns the integer form of a depthwise convolution, or its float32 form with the reason."""
    width = len(bias)
    if x is None or not isinstance(weight, Weight):
        why = f"the {'input' if x is None else 'weight'} is not quantized"
    elif x.table is not None or x.step_token is not None:
        why = "the input has a scale per token or a table"
    elif weight.codes.min() < -128 or weight.codes.max() > 127 or (weight.smooth != 1).any():
        why = "the weight's codes do not fit into 8 bits, or are smoothed"
    else:
        zero = np.broadcast_to(x.zero.astype(np.int64) + x.offset, width).copy()
        scale = (np.broadcast_to(weight.scale, width) * x.step_channel).astype(np.float32)
        return integer(weight.codes[:, 0].copy(), scale, zero, bias)
    return floating(values_of(weight)[:, 0].astype(np.float32), bias, why)


def codes_or_values(weight: Weight | Floats) -> np.ndarray:
    """Returns a weight's codes, or the parameter itself where it is not quantized."""
    return weight.codes if isinstance(weight, Weight) else weight


def values_of(weight: Weight | Floats) -> Floats:
    """Returns a weight's decoded values, or the parameter itself where it is not quantized."""
    return weight.decoded() if isinstance(weight, Weight) else weight
