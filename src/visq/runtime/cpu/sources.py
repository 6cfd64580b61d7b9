"""Writes an operation's source into the flat file: one function for each source and form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from visq.integer.attention import FloatAttention, IntegerAttention
from visq.integer.fixed_scan import FixedScan
from visq.integer.float_scan import FloatScan
from visq.integer.forms import (
    FloatConv1d,
    FloatConv2d,
    FloatLinear,
    Form,
    IntegerConv1d,
    IntegerConv2d,
    IntegerLinear,
    WideLinear,
)
from visq.integer.fused_scan import FusedScan
from visq.integer.ladder_scan import LadderScan
from visq.integer.operations import (
    Attention,
    AveragePool,
    Bilinear,
    Concat,
    Constant,
    Conv1d,
    Conv2d,
    DenseConv2d,
    EnterWindows,
    LeaveWindows,
    Linear,
    Mean,
    MergeSamples,
    Operation,
    Patches,
    PixelShuffle,
    Rows,
    Sample,
    Scan,
    Transpose,
)
from visq.native.flat_file import FlatFile
from visq.native.memory import empty, flat
from visq.native.scans import add_float_scan, add_integer_scan
from visq.runtime.bundle import Bundle
from visq.runtime.cpu.codecs import CodecTable


@dataclass(frozen=True)
class Target:
    """The file and the operation that a source is written for.

    Attributes:
        tensors: the file's index of every tensor written so far, by name.
        heights: of every map that is not square, by name; None for other tensors.
        codecs: the file's codecs.
        y: for a scan and attention, the index of the tensor they write; -1 elsewhere.
    """

    file: FlatFile
    bundle: Bundle
    operation: Operation
    tensors: dict[str, int]
    heights: dict[str, int | None]
    codecs: CodecTable
    y: int = -1


def add_source(target: Target, form: Form) -> None:
    """Starts an operation in the file with its source, in arithmetic form `form`."""
    source = target.operation.source
    of_maps = Patches | Conv2d | DenseConv2d | PixelShuffle | Bilinear | AveragePool
    if isinstance(source, of_maps) and source.input is not None:
        height = target.heights[source.input]
        if height is not None:
            target.file.add("map", target.tensors[source.input], height)
    _SOURCES[type(source)](target, source, form)


def _patches(target: Target, source: Patches, form: Form) -> None:
    x = -1 if source.input is None else target.tensors[source.input]
    operation = target.operation
    target.file.add("patches", operation.rows, operation.width, x, source.patch, source.stride, source.padding)


def _rows(target: Target, source: Rows, form: Form) -> None:
    target.file.add("rows", target.operation.rows)


def _concat(target: Target, source: Concat, form: Form) -> None:
    target.file.add("concat", target.operation.rows, target.operation.width)
    for part in source.parts:
        if isinstance(part, Constant):
            target.file.add("concat_part", -1, 0, 1, flat(target.bundle.constant(part)))
        else:
            name, first, rows = part
            target.file.add("concat_part", target.tensors[name], first, rows, empty())


def _transpose(target: Target, source: Transpose, form: Form) -> None:
    target.file.add("transpose", target.tensors[source.input], source.height, source.width)


def _mean(target: Target, source: Mean, form: Form) -> None:
    target.file.add("mean", target.tensors[source.input])


def _linear(target: Target, source: Linear, form: Form) -> None:
    x, rows, width = target.tensors[source.input], target.operation.rows, target.operation.width
    if isinstance(form, FloatLinear):
        target.file.add("float_linear", rows, width, x, flat(form.weight), flat(form.bias))
        return
    assert isinstance(form, IntegerLinear | WideLinear)
    token = flat(np.ones(rows, np.float32) if form.token is None else form.token)
    weight, scale, bias = flat(form.weight, np.int8), flat(form.scale), flat(form.bias)
    if isinstance(form, WideLinear):
        table = np.zeros(0, np.int16) if form.table is None else flat(form.table, np.int16)
        offset, factor = flat(form.zero, np.int16), flat(form.factor, np.int16)
        target.file.add("wide_linear", rows, width, x, weight, scale, token, bias, table, offset, factor)
        return
    zero = flat(np.broadcast_to(form.zero, rows), np.int32)
    target.file.int_linear(rows, width, x, weight, scale, token, zero, bias)


def _conv1d(target: Target, source: Conv1d, form: Form) -> None:
    x = target.tensors[source.input]
    if isinstance(form, FloatConv1d):
        target.file.add("float_conv", x, flat(form.weight), flat(form.bias), source.reverse)
    else:
        assert isinstance(form, IntegerConv1d)
        weight, zero = flat(form.weight, np.int8), flat(form.zero, np.int32)
        target.file.add("int_conv", x, weight, flat(form.scale), zero, flat(form.bias), source.reverse)
    if source.ahead is not None or source.length is not None:
        target.file.add("reach", source.ahead or 0, source.length or target.operation.rows)


def _conv2d(target: Target, source: Conv2d, form: Form) -> None:
    x = target.tensors[source.input]
    if isinstance(form, FloatConv2d):
        target.file.add("float_conv2d", x, source.kernel, source.padding, flat(form.weight), flat(form.bias))
        return
    assert isinstance(form, IntegerConv2d)
    weight, zero = flat(form.weight, np.int8), flat(form.zero, np.int32)
    target.file.add("int_conv2d", x, source.kernel, source.padding, weight, flat(form.scale), zero, flat(form.bias))


def _dense_conv2d(target: Target, source: DenseConv2d, form: Form) -> None:
    x, rows, width = target.tensors[source.input], target.operation.rows, target.operation.width
    numbers = (*source.kernel, *source.stride, *source.padding)
    if isinstance(form, FloatLinear):
        target.file.add("windows", x, *numbers, 0)
        target.file.add("float_linear", rows, width, x, flat(form.weight), flat(form.bias))
        return
    assert isinstance(form, IntegerLinear)
    target.file.add("windows", x, *numbers, int(form.zero[0]))
    # Bytes of a window lie position by position, all channels of one together.
    weight = form.weight.reshape(width, -1, *source.kernel).transpose(0, 2, 3, 1)
    token, zero = np.ones(rows, np.float32), flat(np.broadcast_to(form.zero, rows), np.int32)
    target.file.int_linear(rows, width, x, flat(weight, np.int8), flat(form.scale), token, zero, flat(form.bias))


def _pixel_shuffle(target: Target, source: PixelShuffle, form: Form) -> None:
    target.file.add("pixel_shuffle", target.tensors[source.input], source.scale)


def _bilinear(target: Target, source: Bilinear, form: Form) -> None:
    rows = target.operation.rows
    height = target.heights[source.like] or math.isqrt(rows)
    target.file.add("bilinear", target.tensors[source.input], height, rows // height)


def _average_pool(target: Target, source: AveragePool, form: Form) -> None:
    target.file.add("average_pool", target.tensors[source.input], source.height, source.width)


def _enter_windows(target: Target, source: EnterWindows, form: Form) -> None:
    target.file.add("enter_windows", target.tensors[source.input], source.side, source.window)


def _leave_windows(target: Target, source: LeaveWindows, form: Form) -> None:
    target.file.add("leave_windows", target.tensors[source.input], source.side, source.window)


def _sample(target: Target, source: Sample, form: Form) -> None:
    size = (source.height, source.width)
    target.file.add("sample", target.tensors[source.input], *size, source.row, source.column, source.by_columns)


def _merge_samples(target: Target, source: MergeSamples, form: Form) -> None:
    samples = [target.tensors[name] for name in source.inputs]
    target.file.add("merge_samples", *samples, source.height, source.width)


def _attention(target: Target, source: Attention, form: Form) -> None:
    rows, keys = target.operation.rows, source.heads * source.length
    inputs = [target.tensors[name] for name in (source.q, source.k, source.v)]
    codecs = [
        -1 if site is None else target.codecs.index(site, rows, keys, False, source.length)
        for site in (source.scores, source.probs)
    ]
    shape = (*inputs, target.y, source.heads, source.length)
    if isinstance(form, FloatAttention):
        target.file.add("float_attention", *shape, float(form.scale), *codecs)
        return
    assert isinstance(form, IntegerAttention)
    sequences = rows // source.length
    q, k, p = (flat(np.tile(scale, sequences)) for scale in (form.q_scale, form.k_scale, form.p_scale))
    target.file.add("int_attention", *shape, q, k, flat(form.v_scale), p, *codecs)


def _scan(target: Target, source: Scan, form: Form) -> None:
    inputs = [target.tensors[name] for name in (source.u, source.delta, source.B, source.C)]
    if isinstance(form, FloatScan):
        add_float_scan(target.file, inputs, target.y, source.reverse, target.operation.rows, form)
        if source.length is not None:
            target.file.add("sequences", source.length)
        return
    assert isinstance(form, FixedScan | FusedScan | LadderScan)
    add_integer_scan(target.file, inputs, target.y, source.reverse, form)


_SOURCES: dict[type, Callable[[Target, Any, Form], None]] = {
    Patches: _patches,
    Rows: _rows,
    Concat: _concat,
    Transpose: _transpose,
    EnterWindows: _enter_windows,
    LeaveWindows: _leave_windows,
    Sample: _sample,
    MergeSamples: _merge_samples,
    Attention: _attention,
    Mean: _mean,
    Linear: _linear,
    Conv1d: _conv1d,
    Conv2d: _conv2d,
    DenseConv2d: _dense_conv2d,
    PixelShuffle: _pixel_shuffle,
    Bilinear: _bilinear,
    AveragePool: _average_pool,
    Scan: _scan,
}
