"""Chooses the arithmetic form of each operation of a program, from its codecs and parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from visq.errors import VisqError, need
from visq.integer.arithmetic import Floats
from visq.integer.attention import AttentionCodecs, FloatAttention, attention_form
from visq.integer.codecs import Codec
from visq.integer.float_scan import FloatScan
from visq.integer.forms import (
    FloatConv1d,
    FloatConv2d,
    FloatLinear,
    Form,
    IntegerConv1d,
    IntegerConv2d,
    IntegerLinear,
    codes_or_values,
    dense_conv2d,
    depthwise,
    linear,
)
from visq.integer.operations import (
    Attention,
    Conv1d,
    Conv2d,
    DenseConv2d,
    Linear,
    Operation,
    Patches,
    Scan,
    Store,
    TensorDecl,
)
from visq.integer.program import Program
from visq.integer.scan_steps import ScanCodecs
from visq.integer.scans import in_sequences, integer_form
from visq.runtime.bundle import Bundle


def form_of(program: Program, operation: Operation, bundle: Bundle) -> Form:
    """Returns the form of an operation; None for sources that have only one form.

    Raises:
        VisqError: parameters do not fit the program. The message names the operation.
    """
    make = _FORMS.get(type(operation.source))
    try:
        return None if make is None else make(program, operation, operation.source, bundle)
    except VisqError as error:
        raise VisqError(f"operation {operation.name}: {error}") from error


_IN_FLOAT = FloatLinear | FloatConv1d | FloatConv2d | FloatScan | FloatAttention


def reason(form: Form) -> str | None:
    """Returns the reason why a form is in float32; None for integer forms and for no form."""
    return form.reason if isinstance(form, _IN_FLOAT) else None


def _input(program: Program, name: str, bundle: Bundle) -> Codec | None:
    site = program.tensors[name].site
    return None if site is None else bundle.codec(site)


def _bias(name: str | None, size: int, bundle: Bundle) -> Floats:
    bias = np.zeros(size, np.float32) if name is None else bundle.parameter(name)
    need(bias.shape == (size,), f"{name} has shape {list(bias.shape)}, expected [{size}]")
    return bias


def _linear(program: Program, operation: Operation, source: Linear, bundle: Bundle) -> Form:
    decl = program.tensors[source.input]
    weight = bundle.weight(source.weight)
    matrix = codes_or_values(weight)
    shape, expected = (matrix.shape[0], matrix[0].size), (operation.width, decl.width)
    need(shape == expected, f"{source.weight} is {list(shape)}, expected {list(expected)}")
    x = _input(program, source.input, bundle)
    rounded = x is None and _rounded_before(program, source.input)
    form = linear(x, weight, _bias(source.bias, operation.width, bundle), rounded_before=rounded)
    if not isinstance(form, FloatLinear) and form.token is not None:
        fits = form.token.size == (decl.length or operation.rows)
        need(fits, f"{decl.site} has scales for another number of tokens")
        form = replace(form, token=_by_row(form.token, decl))
    if isinstance(form, IntegerLinear) and form.zero.size > 1:
        form = replace(form, zero=_by_row(form.zero, decl))
    return form


def _by_row(by_token: np.ndarray, decl: TensorDecl) -> np.ndarray:
    """Returns a number for each row of a tensor, from those of the tokens of a sequence."""
    sequences = np.tile(by_token, decl.rows // (decl.length or decl.rows))
    return sequences[::-1].copy() if decl.reverse else sequences


def _rounded_before(program: Program, windows: str) -> bool:
    """Returns whether a tensor holds windows of a map that was already quantized; its row then mixes several scales."""
    for operation in program.operations:
        stored = {step.tensor for step in operation.body if isinstance(step, Store)}
        if isinstance(operation.source, Patches) and operation.source.input is not None and windows in stored:
            return program.tensors[operation.source.input].site is not None
    return False


def _conv1d(program: Program, operation: Operation, source: Conv1d, bundle: Bundle) -> Form:
    weight = bundle.weight(source.weight)
    taps = codes_or_values(weight)
    need(
        taps.ndim == 3 and taps.shape[:2] == (operation.width, 1) and 1 <= taps.shape[2] <= 64,
        f"{source.weight} is {list(taps.shape)}, expected [{operation.width}, 1, kernel]",
    )
    x, bias = _input(program, source.input, bundle), _bias(source.bias, operation.width, bundle)
    return depthwise(x, weight, bias, IntegerConv1d, FloatConv1d)


def _conv2d(program: Program, operation: Operation, source: Conv2d, bundle: Bundle) -> Form:
    weight = bundle.weight(source.weight)
    taps = codes_or_values(weight)
    expected = (operation.width, 1, source.kernel, source.kernel)
    need(taps.shape == expected, f"{source.weight} is {list(taps.shape)}, expected {list(expected)}")
    x, bias = _input(program, source.input, bundle), _bias(source.bias, operation.width, bundle)
    return depthwise(x, weight, bias, IntegerConv2d, FloatConv2d)


def _dense_conv2d(program: Program, operation: Operation, source: DenseConv2d, bundle: Bundle) -> Form:
    weight = bundle.weight(source.weight)
    found, expected = (
        codes_or_values(weight).shape,
        (operation.width, program.tensors[source.input].width, *source.kernel),
    )
    need(found == expected, f"{source.weight} is {list(found)}, expected {list(expected)}")
    x, bias = _input(program, source.input, bundle), _bias(source.bias, operation.width, bundle)
    return dense_conv2d(x, weight, bias)


def _attention(program: Program, operation: Operation, source: Attention, bundle: Bundle) -> Form:
    codecs = AttentionCodecs(
        *(_input(program, name, bundle) for name in (source.q, source.k, source.v)),
        *(None if site is None else bundle.codec(site) for site in (source.scores, source.probs)),
    )
    for codec in (codecs.q, codecs.k, codecs.v, codecs.scores, codecs.probs):
        fits = codec is None or codec.step_token is None or codec.step_token.size == source.length
        need(fits, "its scales are for another number of tokens")
    return attention_form(
        codecs, source.length, operation.width, source.heads, (operation.width // source.heads) ** -0.5
    )


def _scan(program: Program, operation: Operation, source: Scan, bundle: Bundle) -> Form:
    A = bundle.constant(source.A)
    states, length = program.tensors[source.B].width, source.length or operation.rows
    need(A.shape == (operation.width, states), f"A is {list(A.shape)}, expected [{operation.width}, {states}]")
    abar = None if source.abar is None else bundle.factor(source.abar)
    bbar = None if source.bbar is None else bundle.factor(source.bbar)
    h = None if source.h is None else bundle.state(source.h)
    fits = bbar is None or bbar.channel.size in (1, operation.width)
    need(fits, f"{source.bbar} was made for another number of channels")
    if h is not None:
        fits = h.step.size in (1, length) and h.channel.size == operation.width and h.state.size == states
        need(fits, f"{source.h} was made for another shape")
    delta, B, C = (_input(program, name, bundle) for name in (source.delta, source.B, source.C))
    for name, x, tensor in (("B", B, source.B), ("C", C, source.C)):
        fits = x is None or x.step_token is None or x.step_token.size == length
        need(fits, f"{name} has scales for another number of tokens")
        if x is not None and x.step_token is not None and program.tensors[tensor].reverse != source.reverse:
            return FloatScan(A, abar, bbar, h, f"{name}'s scales count in the other direction")
    form = integer_form(length, A, ScanCodecs(delta, B, C, abar, bbar, h, bundle.is_ladder(source.A.name)))
    if isinstance(form, str):
        return FloatScan(A, abar, bbar, h, form)
    return form if source.length is None else in_sequences(form, operation.rows // length)


#: Makes the form of an operation, by the type of its source. Other sources have only one form.
_FORMS: dict[type, Callable[..., Form]] = {
    Linear: _linear,
    Conv1d: _conv1d,
    Conv2d: _conv2d,
    DenseConv2d: _dense_conv2d,
    Attention: _attention,
    Scan: _scan,
}
