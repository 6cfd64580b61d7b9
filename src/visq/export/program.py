"""An artifact's program as an ONNX graph: its own numbers, in quantize-dequantize form.

Linears and convolutions whose operands have codes become DequantizeLinear, MatMul or Conv; scales of one number per
token are explicit multiplications. Everything else runs in float32, as in the engine. Sums of float32 are rounded in
another order than the engine's, so logits agree closely and not to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from visq.errors import VisqError
from visq.export.attention import attention
from visq.export.codes import Coded, encode, weight_codes, weight_values
from visq.export.fixed_scan import fixed_point_scan
from visq.export.graph import Graph
from visq.export.instructions import INSTRUCTIONS, UNARY
from visq.export.maps import (
    average_pool,
    bilinear,
    rows_from_windows,
    rows_of_merge,
    rows_of_sample,
    rows_of_windows,
    taken,
)
from visq.export.scan import CHUNK, float_scan
from visq.integer.arithmetic import Floats
from visq.integer.attention import FloatAttention, IntegerAttention
from visq.integer.consistency import map_size
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
    Append,
    Attention,
    AveragePool,
    Bilinear,
    Binary,
    Concat,
    Constant,
    Conv1d,
    Conv2d,
    DenseConv2d,
    EnterWindows,
    LeaveWindows,
    Linear,
    Load,
    Mean,
    MergeSamples,
    Operation,
    Patches,
    PixelShuffle,
    Rows,
    Sample,
    Scan,
    Store,
    Transpose,
    Unary,
)
from visq.integer.program import Program
from visq.runtime.bundle import Bundle
from visq.runtime.operation_forms import form_of

IMAGES, LOGITS = "images", "logits"


def to_onnx(program: Program, bundle: Bundle, chunk: int | None = None) -> Any:
    """Returns a checked ONNX model: images [batch, channels, size, size] float32, normalized -> logits [batch, width].

    Arguments:
        chunk: steps of a scan that one iteration computes; what is best for onnxruntime by default.
    Raises:
        VisqError: something that has no ONNX form, named.
    """
    return _Export(program, bundle, chunk or CHUNK).run()


class _Export:
    """Walks over a program once; `tensors` holds each stored tensor, `registers` those of the operation at hand."""

    def __init__(self, program: Program, bundle: Bundle, chunk: int) -> None:
        self.program, self.bundle, self.graph, self.chunk = program, bundle, Graph(), chunk
        self.tensors: dict[str, str | Coded] = {}
        self.registers: dict[int, str] = {}
        self.operation: Operation
        # Registers whose row was rounded last, so that a store of the same codes rounds once.
        self.batch = self.graph.node("Shape", IMAGES, start=0, end=1)

    def run(self) -> Any:
        for operation in self.program.operations:
            self.operation, self.registers = operation, {}
            source = _SOURCES.get(type(operation.source))
            if source is None and not isinstance(operation.source, Rows):
                raise VisqError(f"operation {operation.name}: {operation.source.kind} has no ONNX form")
            if source is not None:
                form = form_of(self.program, operation, self.bundle)
                self.registers[0] = source(self, operation.source, form)
            for step in operation.body:
                self.instruction(step)
            self.bundle.forget()
        program, result = self.program, self.value(self.program.output)
        if program.output_map:
            self.map_of(result, program.output)
        else:
            self.graph.reshape(self.graph.slice(result, 1, 0, 1), (-1, *program.output_shape))
        self.graph.nodes[-1].output[0] = LOGITS
        size = (program.height, program.width)
        return self.graph.model(
            [(IMAGES, ["batch", program.channels, *size])], [(LOGITS, ["batch", *program.output_shape])]
        )

    def value(self, name: str) -> str:
        """The values of a tensor [B, rows, width]."""
        found = self.tensors[name]
        return found.decoded(self.graph) if isinstance(found, Coded) else found

    def integers(self, name: str) -> str:
        """The codes of a tensor less their zero point, as float32."""
        found = self.tensors[name]
        assert isinstance(found, Coded)
        return found.integers

    def map_of(self, x: str, name: str) -> str:
        """A map [B, rows, channels] as [B, channels, height, width]."""
        decl = self.program.tensors[name]
        return self.graph.reshape(self.graph.transpose(x, (0, 2, 1)), (-1, decl.width, *map_size(decl)))

    def rows_of(self, x: str) -> str:
        """A map [B, channels, height, width] as [B, rows, channels]."""
        return self.graph.transpose(self.graph.reshape(x, (0, self.operation.width, -1)), (0, 2, 1))

    def sequences(self, x: str, length: int | None) -> str:
        """Returns rows [B, rows, width] as sequences [B sequences, length, width]."""
        return x if length in (None, self.operation.rows) else self.graph.reshape(x, (-1, length, 0))

    def rows_of_sequences(self, x: str, length: int | None) -> str:
        """Undoes `sequences`."""
        return x if length in (None, self.operation.rows) else self.graph.reshape(x, (-1, self.operation.rows, 0))

    # --- sources

    def patches(self, source: Patches, form: Form) -> str:
        graph, patch, channels = self.graph, source.patch, self.program.channels
        image, size = IMAGES, (self.program.height, self.program.width)
        if source.input is not None:
            channels = self.program.tensors[source.input].width
            size = map_size(self.program.tensors[source.input])
            image = self.map_of(self.value(source.input), source.input)
        around = (0, 0, source.padding, source.padding)
        image = graph.pad(image, around, around)
        down, across = ((side + 2 * source.padding - patch) // source.stride + 1 for side in size)
        count = down * across
        if patch == source.stride and not source.padding:
            image = graph.slice(graph.slice(image, 2, 0, down * patch), 3, 0, across * patch)
            x = graph.reshape(image, (-1, channels, down, patch, across, patch))
            return graph.reshape(graph.transpose(x, (0, 2, 4, 1, 3, 5)), (-1, count, channels * patch * patch))
        parts = []
        for i in range(patch):
            rows = graph.slice(image, 2, i, i + (down - 1) * source.stride + 1, source.stride)
            last = (across - 1) * source.stride + 1
            parts += [graph.slice(rows, 3, j, j + last, source.stride) for j in range(patch)]
        stacked = graph.node(
            "Concat", *(graph.node("Unsqueeze", x, graph.constant([2], np.int64)) for x in parts), axis=2
        )
        x = graph.transpose(graph.reshape(stacked, (-1, channels * patch * patch, count)), (0, 2, 1))
        return str(x)

    def linear(self, source: Linear, form: Form) -> str:
        graph = self.graph
        if isinstance(form, FloatLinear):
            product = graph.node("MatMul", self.value(source.input), graph.constant(form.weight.T))
            return graph.add(product, graph.constant(form.bias))
        coded = self.tensors[source.input]
        assert isinstance(form, IntegerLinear | WideLinear) and isinstance(coded, Coded)
        x, scale = coded.integers, form.scale
        if isinstance(form, WideLinear):
            x = self.wide_values(source.input, form)
        elif coded.values is not None:  # the usual form: both operands dequantized to their values
            x, scale = coded.values, (form.scale / coded.steps[0]).astype(np.float32)
        if coded.is_bytes and isinstance(form, IntegerLinear):
            weight = weight_values(graph, form.weight.T, np.broadcast_to(scale, len(form.weight)), axis=1)
            product = graph.node("MatMul", x, weight)
        else:
            product = graph.scaled(graph.node("MatMul", x, weight_codes(graph, form.weight.T)), scale)
        if form.token is not None:
            product = graph.scaled(product, form.token[:, None])
        return graph.add(product, graph.constant(form.bias))

    def wide_values(self, name: str, form: WideLinear) -> str:
        """The whole numbers of a sum whose input has power-of-two scales for each channel, or a table."""
        if form.table is None:
            return self.graph.scaled(self.integers(name), form.factor.astype(np.float32))
        site = self.program.tensors[name].site
        assert site is not None
        codec = self.bundle.codec(site)
        assert codec.table is not None
        # Entries of the table are the whole numbers times one unit, which form.scale holds already.
        whole = form.table[: len(codec.table)].astype(np.float64)
        unit = float(np.abs(codec.table).max() / np.abs(whole).max())
        return self.graph.scaled(self.integers(name), np.float32(1 / unit) * form.factor.astype(np.float32))

    def conv1d(self, source: Conv1d, form: Form) -> str:
        graph = self.graph
        assert isinstance(form, FloatConv1d | IntegerConv1d)
        integer = isinstance(form, IntegerConv1d)
        x = self.integers(source.input) if integer else self.value(source.input)
        taps, ahead = form.weight[:, ::-1] if source.reverse else form.weight, source.ahead or 0
        ends = [taps.shape[1] - 1 - ahead, ahead]
        ends = ends[::-1] if source.reverse else ends
        channels = graph.transpose(self.sequences(x, source.length), (0, 2, 1))
        convolved = self.depthwise(channels, taps, form, ends)
        return self.rows_of_sequences(graph.transpose(convolved, (0, 2, 1)), source.length)

    def conv2d(self, source: Conv2d, form: Form) -> str:
        assert isinstance(form, FloatConv2d | IntegerConv2d)
        integer = isinstance(form, IntegerConv2d)
        x = self.map_of(self.integers(source.input) if integer else self.value(source.input), source.input)
        maps = self.depthwise(x, form.weight, form, [source.padding] * 4)
        return self.rows_of(maps)

    def dense_conv2d(self, source: DenseConv2d, form: Form) -> str:
        graph, shape = self.graph, (self.operation.width, -1, *source.kernel)
        pads = [*source.padding, *source.padding]
        if isinstance(form, FloatLinear):
            x = self.map_of(self.value(source.input), source.input)
            weight = graph.constant(form.weight.reshape(shape))
        else:
            coded = self.tensors[source.input]
            assert isinstance(form, IntegerLinear) and isinstance(coded, Coded)
            x = self.map_of(coded.integers, source.input)
            weight = weight_values(graph, form.weight.reshape(shape), form.scale, axis=0)
        maps = graph.node("Conv", x, weight, graph.constant(form.bias), pads=pads, strides=list(source.stride))
        return self.rows_of(maps)

    def pixel_shuffle(self, source: PixelShuffle, form: Form) -> str:
        x = self.map_of(self.value(source.input), source.input)
        return self.rows_of(self.graph.node("DepthToSpace", x, blocksize=source.scale, mode="CRD"))

    def depthwise(self, x: str, taps: np.ndarray, form: Any, pads: list[int]) -> str:
        graph, weight = self.graph, taps[:, None]
        if isinstance(form, IntegerConv1d | IntegerConv2d):
            stored = weight_values(graph, weight, np.broadcast_to(form.scale, len(weight)), axis=0)
        else:
            stored = graph.constant(weight)
        return str(graph.node("Conv", x, stored, graph.constant(form.bias), group=len(weight), pads=pads))

    def transpose(self, source: Transpose, form: Form) -> str:
        graph, width = self.graph, self.operation.width
        x = graph.reshape(self.value(source.input), (-1, source.height, source.width, width))
        return graph.reshape(graph.transpose(x, (0, 2, 1, 3)), (-1, source.height * source.width, width))

    def enter_windows(self, source: EnterWindows, form: Form) -> str:
        return self.cut(source.input, rows_of_windows(source))

    def leave_windows(self, source: LeaveWindows, form: Form) -> str:
        return taken(self.graph, self.value(source.input), rows_from_windows(source))

    def sample(self, source: Sample, form: Form) -> str:
        return self.cut(source.input, rows_of_sample(source))

    def cut(self, name: str, rows: np.ndarray) -> str:
        """Rows of a map by their numbers, of zeros where a number is beyond the last row."""
        x = self.value(name)
        if rows.max() == self.program.tensors[name].rows:
            x = self.graph.node("Concat", x, self.repeated(np.zeros((1, 1, self.operation.width), np.float32)), axis=1)
        return taken(self.graph, x, rows)

    def merge_samples(self, source: MergeSamples, form: Form) -> str:
        joined = self.graph.node("Concat", *(self.value(name) for name in source.inputs), axis=1)
        return taken(self.graph, joined, rows_of_merge(source))

    def bilinear(self, source: Bilinear, form: Form) -> str:
        size, target = (map_size(self.program.tensors[name]) for name in (source.input, source.like))
        return bilinear(self.graph, self.value(source.input), size, target, self.operation.width)

    def average_pool(self, source: AveragePool, form: Form) -> str:
        size = map_size(self.program.tensors[source.input])
        return average_pool(self.graph, self.value(source.input), size, (source.height, source.width))

    def attention(self, source: Attention, form: Form) -> str:
        assert isinstance(form, IntegerAttention | FloatAttention)
        read = self.integers if isinstance(form, IntegerAttention) else self.value
        q, k, v = (self.sequences(read(name), source.length) for name in (source.q, source.k, source.v))
        return self.rows_of_sequences(attention(self.graph, form, source, (q, k, v)), source.length)

    def mean(self, source: Mean, form: Form) -> str:
        axes = self.graph.constant([1], np.int64)
        return str(self.graph.node("ReduceMean", self.value(source.input), axes, keepdims=1))

    def concat(self, source: Concat, form: Form) -> str:
        return str(self.graph.node("Concat", *(self.part(part) for part in source.parts), axis=1))

    def part(self, part: Any) -> str:
        if not isinstance(part, Constant):
            name, first, rows = part
            return self.graph.slice(self.value(name), 1, first, first + rows)
        return self.repeated(self.bundle.constant(part).reshape(1, 1, -1))

    def repeated(self, rows: Floats) -> str:
        """Constant rows [1, rows, width] for every image."""
        graph = self.graph
        shape = graph.node("Concat", self.batch, graph.constant(rows.shape[1:], np.int64), axis=0)
        return str(graph.node("Expand", graph.constant(rows), shape))

    def scan(self, source: Scan, form: Form) -> str:
        u, delta, B = (self.sequences(self.value(name), source.length) for name in (source.u, source.delta, source.B))
        C = self.sequences((self.value if isinstance(form, FloatScan) else self.integers)(source.C), source.length)
        how = ((u, delta, B, C), source.length or self.operation.rows, source.reverse, self.chunk)
        if isinstance(form, FloatScan):
            y = float_scan(self.graph, form, *how)
        else:
            assert isinstance(form, FixedScan | FusedScan | LadderScan)
            y = fixed_point_scan(self.graph, form, *how)
        return self.rows_of_sequences(y, source.length)

    # --- row instructions

    def instruction(self, step: Any) -> None:
        if isinstance(step, Store):
            self.store(step)
        elif isinstance(step, Load):
            x = self.value(step.tensor)
            self.registers[step.dst] = x if step.row is None else self.graph.slice(x, 1, step.row, step.row + 1)
        elif isinstance(step, Append):
            both = (self.registers[step.a], self.registers[step.b])
            self.registers[step.dst] = self.graph.node("Concat", *both, axis=2)
        elif isinstance(step, Binary):
            kind = {"add": "Add", "mul": "Mul"}[step.op]
            self.registers[step.dst] = self.graph.node(kind, self.registers[step.a], self.registers[step.b])
        else:
            if isinstance(step, Unary) and step.op not in UNARY:
                raise VisqError(f"operation {self.operation.name}: row instruction {step.op} has no ONNX form")
            x = self.registers[step.src]
            self.registers[step.dst] = INSTRUCTIONS[type(step)](self.graph, self.bundle, self.operation, step, x)

    def store(self, step: Store) -> None:
        decl, x = self.program.tensors[step.tensor], self.registers[step.src]
        if decl.site is None:
            self.tensors[step.tensor] = x
        else:
            codec = self.bundle.codec(decl.site)
            count = decl.rows // (decl.length or decl.rows)
            self.tensors[step.tensor] = encode(self.graph, decl.site, codec, x, decl.reverse, count)


_SOURCES: dict[type, Callable[[_Export, Any, Form], str]] = {
    Patches: _Export.patches,
    Linear: _Export.linear,
    Conv1d: _Export.conv1d,
    Conv2d: _Export.conv2d,
    DenseConv2d: _Export.dense_conv2d,
    PixelShuffle: _Export.pixel_shuffle,
    Transpose: _Export.transpose,
    EnterWindows: _Export.enter_windows,
    LeaveWindows: _Export.leave_windows,
    Sample: _Export.sample,
    MergeSamples: _Export.merge_samples,
    Bilinear: _Export.bilinear,
    AveragePool: _Export.average_pool,
    Attention: _Export.attention,
    Mean: _Export.mean,
    Scan: _Export.scan,
    Concat: _Export.concat,
}
