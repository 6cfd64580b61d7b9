"""The arithmetic form of every operation of a program: integer where its operands allow it, float32 otherwise with the
reason. Oracle and kernels run the same forms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from visq.errors import VisqError
from visq.runtime.arithmetic import Codes, Floats, Ints
from visq.runtime.bundle import Bundle, Weight
from visq.runtime.fused_scan import FusedScan, integer_form
from visq.runtime.program import Conv1d, Conv2d, Linear, Operation, Patches, Program, Scan, Store
from visq.runtime.quantizers import Factor, Quantizer, StateQuantizer
from visq.runtime.scan import FixedScan


@dataclass(frozen=True)
class IntegerLinear:
    """x = (float(sum_k (byte[k] - zero[t]) weight[n, k]) * scale[n]) * token[t] + bias[n].

    Attributes:
        weight: [N, K] in -128..127.
        scale: [N]; token: [rows] or None.
        zero: [1] or [rows], of bytes.
    """

    weight: Codes
    scale: Floats
    token: Floats | None
    zero: Ints
    bias: Floats


@dataclass(frozen=True)
class WideLinear:
    """x = (float(sum_k value[k] weight[n, k]) * scale[n]) * token[t] + bias[n], value[k] = (table[byte[k]] - zero[k])
    factor[k]: inputs with a power-of-two scale for each channel, or a table of whole numbers.

    Attributes:
        weight: [N, K] in -128..127.
        table: [256], or None for the byte itself; zero, factor: [K]. Values fit into 16 bits and sums into 32.
        scale: [N]; token: [rows] or None.
    """

    weight: Codes
    table: Ints | None
    zero: Ints
    factor: Ints
    scale: Floats
    token: Floats | None
    bias: Floats

    def values(self, codes: Ints) -> Ints:
        """value of bytes [..., K]."""
        found: Ints = ((codes if self.table is None else self.table[codes]) - self.zero) * self.factor
        return found


@dataclass(frozen=True)
class FloatLinear:
    """x = sum_k x[k] weight[n, k] + bias[n], in the order of k."""

    weight: Floats
    bias: Floats
    reason: str


@dataclass(frozen=True)
class IntegerConv1d:
    """x[c] = float(sum_k (byte[t-K+1+k, c] - zero[c]) weight[c, k]) * scale[c] + bias[c]; missing rows add nothing."""

    weight: Codes
    scale: Floats
    zero: Ints
    bias: Floats


@dataclass(frozen=True)
class FloatConv1d:
    weight: Floats
    bias: Floats
    reason: str


@dataclass(frozen=True)
class IntegerConv2d:
    """x[c] = float(sum_k (byte[k, c] - zero[c]) weight[c, k]) * scale[c] + bias[c] over the window's positions k; those
    outside the map add nothing. weight [C, K, K]."""

    weight: Codes
    scale: Floats
    zero: Ints
    bias: Floats


@dataclass(frozen=True)
class FloatConv2d:
    weight: Floats
    bias: Floats
    reason: str


@dataclass(frozen=True)
class FloatScan:
    A: Floats
    abar: Factor | None
    bbar: Factor | None
    h: StateQuantizer | None
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
    | FloatScan
    | None
)


def form_of(program: Program, operation: Operation, bundle: Bundle) -> Form:
    """The form of an operation; None for sources that only move rows.

    Raises:
        VisqError: parameters that do not fit the program.
    """
    source = operation.source
    try:
        if isinstance(source, Linear):
            return _linear(program, operation, source, bundle)
        if isinstance(source, Conv1d):
            return _conv1d(program, operation, source, bundle)
        if isinstance(source, Conv2d):
            return _conv2d(program, operation, source, bundle)
        if isinstance(source, Scan):
            return _scan(program, operation, source, bundle)
    except VisqError as error:
        raise VisqError(f"operation {operation.name}: {error}") from error
    return None


def reason(form: Form) -> str | None:
    """Why a form is in float32; None for integers and for what only moves rows."""
    return form.reason if isinstance(form, FloatLinear | FloatConv1d | FloatConv2d | FloatScan) else None


def _input(program: Program, name: str, bundle: Bundle) -> Quantizer | None:
    site = program.tensors[name].site
    return None if site is None else bundle.quantizer(site)


def _bias(name: str | None, size: int, bundle: Bundle) -> Floats:
    bias = np.zeros(size, np.float32) if name is None else bundle.parameter(name)
    _need(bias.shape == (size,), f"{name} has shape {list(bias.shape)}, expected [{size}]")
    return bias


def _linear(program: Program, operation: Operation, source: Linear, bundle: Bundle) -> Form:
    decl = program.tensors[source.input]
    weight = bundle.weight(source.weight)
    matrix = _stored(weight)
    shape, expected = (matrix.shape[0], matrix[0].size), (operation.width, decl.width)
    _need(shape == expected, f"{source.weight} is {list(shape)}, expected {list(expected)}")
    x = _input(program, source.input, bundle)
    rounded = x is None and _rounded_before(program, source.input)
    form = linear(x, weight, _bias(source.bias, operation.width, bundle), rounded_before=rounded)
    if not isinstance(form, FloatLinear) and form.token is not None:
        need = form.token.size == operation.rows
        _need(need, f"{decl.site} has scales for another number of tokens")
        if decl.reverse:
            form = replace(form, token=form.token[::-1].copy())
    if isinstance(form, IntegerLinear) and decl.reverse:
        form = replace(form, zero=form.zero[::-1].copy())
    return form


def linear(
    x: Quantizer | None, weight: Weight | Floats, bias: Floats, rounded_before: bool = False
) -> IntegerLinear | WideLinear | FloatLinear:
    """The form of a product of an input and a weight's rows; token scales and zero points in the order of the site's.

    Raises:
        VisqError: the weight is rotated, and there is no integer product.
    """
    matrix = _stored(weight)
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
    return FloatLinear(np.ascontiguousarray(_decoded(weight).reshape(matrix.shape), np.float32), bias, why)


def _wide(x: Quantizer, matrix: Codes, weight_scale: Floats, bias: Floats) -> WideLinear | str:
    """The form of an input whose values are whole numbers of some unit, but not its codes; or why there is none."""
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
    """([256] whole numbers, unit) of a table, whose entries are these times the unit; None where there are none. The
    unit is the smallest gap, which tables of several steps have around zero, where float32 is finest."""
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


def _rounded_before(program: Program, windows: str) -> bool:
    """Whether a tensor holds windows of a map that was rounded as a map: numbers of several scales side by side."""
    for operation in program.operations:
        stored = {step.tensor for step in operation.body if isinstance(step, Store)}
        if isinstance(operation.source, Patches) and operation.source.input is not None and windows in stored:
            return program.tensors[operation.source.input].site is not None
    return False


def _conv1d(program: Program, operation: Operation, source: Conv1d, bundle: Bundle) -> Form:
    weight = bundle.weight(source.weight)
    taps = _stored(weight)
    _need(
        taps.ndim == 3 and taps.shape[:2] == (operation.width, 1) and 1 <= taps.shape[2] <= 64,
        f"{source.weight} is {list(taps.shape)}, expected [{operation.width}, 1, kernel]",
    )
    x, bias = _input(program, source.input, bundle), _bias(source.bias, operation.width, bundle)
    return depthwise(x, weight, bias, IntegerConv1d, FloatConv1d)


def _conv2d(program: Program, operation: Operation, source: Conv2d, bundle: Bundle) -> Form:
    weight = bundle.weight(source.weight)
    taps = _stored(weight)
    expected = (operation.width, 1, source.kernel, source.kernel)
    _need(taps.shape == expected, f"{source.weight} is {list(taps.shape)}, expected {list(expected)}")
    x, bias = _input(program, source.input, bundle), _bias(source.bias, operation.width, bundle)
    return depthwise(x, weight, bias, IntegerConv2d, FloatConv2d)


def depthwise(
    x: Quantizer | None,
    weight: Weight | Floats,
    bias: Floats,
    integer: type[Integer],
    floating: type[Floating],
) -> Integer | Floating:
    """A depthwise convolution in integers, or in float32 and why."""
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
    return floating(_decoded(weight)[:, 0].astype(np.float32), bias, why)


def _stored(weight: Weight | Floats) -> np.ndarray:
    """Codes, or the parameter where it is not quantized."""
    return weight.codes if isinstance(weight, Weight) else weight


def _decoded(weight: Weight | Floats) -> Floats:
    return weight.decoded() if isinstance(weight, Weight) else weight


def _scan(program: Program, operation: Operation, source: Scan, bundle: Bundle) -> Form:
    A = bundle.constant(source.A)
    states = program.tensors[source.B].width
    _need(A.shape == (operation.width, states), f"A is {list(A.shape)}, expected [{operation.width}, {states}]")
    abar = None if source.abar is None else bundle.factor(source.abar)
    bbar = None if source.bbar is None else bundle.factor(source.bbar)
    h = None if source.h is None else bundle.state(source.h)
    fits = bbar is None or bbar.channel.size in (1, operation.width)
    _need(fits, f"{source.bbar} was made for another number of channels")
    if h is not None:
        fits = h.step.size in (1, operation.rows) and h.channel.size == operation.width and h.state.size == states
        _need(fits, f"{source.h} was made for another shape")
    delta, B, C = (_input(program, name, bundle) for name in (source.delta, source.B, source.C))
    for name, x, tensor in (("B", B, source.B), ("C", C, source.C)):
        if x is not None and x.step_token is not None and program.tensors[tensor].reverse != source.reverse:
            return FloatScan(A, abar, bbar, h, f"{name}'s scales count in the other direction")
    form = integer_form(operation.rows, A, delta, B, C, abar, bbar, h)
    return FloatScan(A, abar, bbar, h, form) if isinstance(form, str) else form


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise VisqError(what)
