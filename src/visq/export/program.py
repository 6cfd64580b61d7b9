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
from visq.export.codes import Coded, encode, weight_values
from visq.export.graph import Graph
from visq.export.scan import CHUNK, selective_scan
from visq.integer.arithmetic import rotate
from visq.integer.consistency import map_size
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
from visq.integer.operations import (
    AddValues,
    Append,
    Binary,
    Concat,
    Constant,
    Conv1d,
    Conv2d,
    DenseConv2d,
    LayerNorm,
    Linear,
    Load,
    Mean,
    Operation,
    Patches,
    PixelShuffle,
    RmsNorm,
    Rotate,
    Round,
    Rows,
    Scan,
    Slice,
    Store,
    Transpose,
    Unary,
    WithConstant,
    WithScalar,
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
    """One walk over a program; `tensors` holds each stored tensor, `registers` those of the operation at hand."""

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
        weight = weight_values(graph, form.weight.T, np.broadcast_to(scale, len(form.weight)), axis=1)
        product = graph.node("MatMul", x, weight)
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
        if source.length not in (None, self.operation.rows):
            raise VisqError(f"operation {self.operation.name}: a convolution in windows has no ONNX form")
        taps, ahead = form.weight[:, ::-1] if source.reverse else form.weight, source.ahead or 0
        ends = [taps.shape[1] - 1 - ahead, ahead]
        ends = ends[::-1] if source.reverse else ends
        return graph.transpose(self.depthwise(graph.transpose(x, (0, 2, 1)), taps, form, ends), (0, 2, 1))

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

    def mean(self, source: Mean, form: Form) -> str:
        axes = self.graph.constant([1], np.int64)
        return str(self.graph.node("ReduceMean", self.value(source.input), axes, keepdims=1))

    def concat(self, source: Concat, form: Form) -> str:
        return str(self.graph.node("Concat", *(self.part(part) for part in source.parts), axis=1))

    def part(self, part: Any) -> str:
        graph = self.graph
        if not isinstance(part, Constant):
            name, first, rows = part
            return graph.slice(self.value(name), 1, first, first + rows)
        row = self.bundle.constant(part).reshape(1, 1, -1)
        shape = graph.node("Concat", self.batch, graph.constant(row.shape[1:], np.int64), axis=0)
        return str(graph.node("Expand", graph.constant(row), shape))

    def scan(self, source: Scan, form: Form) -> str:
        bundle = self.bundle
        return selective_scan(
            self.graph,
            bundle.constant(source.A),
            None if source.abar is None else bundle.factor(source.abar),
            None if source.bbar is None else bundle.factor(source.bbar),
            None if source.h is None else bundle.state(source.h),
            (self.value(source.u), self.value(source.delta), self.value(source.B), self.value(source.C)),
            self.operation.rows,
            source.reverse,
            self.chunk,
        )

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
            self.registers[step.dst] = _INSTRUCTIONS[type(step)](self, step, self.registers[step.src])

    def store(self, step: Store) -> None:
        decl, x = self.program.tensors[step.tensor], self.registers[step.src]
        if decl.site is None:
            self.tensors[step.tensor] = x
        else:
            codec = self.bundle.codec(decl.site)
            self.tensors[step.tensor] = encode(self.graph, decl.site, codec, x, decl.reverse)

    def slice(self, step: Slice, x: str) -> str:
        return self.graph.slice(x, 2, step.offset, step.offset + step.width)

    def unary(self, step: Unary, x: str) -> str:
        if step.op not in UNARY:
            raise VisqError(f"operation {self.operation.name}: row instruction {step.op} has no ONNX form")
        return UNARY[step.op](self.graph, x)

    def with_constant(self, step: WithConstant, x: str) -> str:
        value = self.bundle.constant(step.constant)
        stored = self.graph.constant(value.reshape(value.shape[-2:] if value.ndim > 1 else value.shape))
        return self.graph.add(x, stored) if step.op == "add_constant" else self.graph.mul(x, stored)

    def add_values(self, step: AddValues, x: str) -> str:
        return self.graph.add(x, self.graph.constant(np.array(step.values, np.float32)))

    def with_scalar(self, step: WithScalar, x: str) -> str:
        return self.graph.mul(x, self.graph.constant(np.float32(step.value)))

    def rms_norm(self, step: RmsNorm, x: str) -> str:
        graph = self.graph
        mean = graph.node("ReduceMean", graph.mul(x, x), graph.constant([-1], np.int64), keepdims=1)
        root = graph.node("Sqrt", graph.add(mean, graph.constant(np.float32(step.eps))))
        return graph.mul(graph.node("Div", x, root), graph.constant(self.bundle.constant(step.weight)))

    def layer_norm(self, step: LayerNorm, x: str) -> str:
        weight, bias = (self.graph.constant(self.bundle.constant(c)) for c in (step.weight, step.bias))
        return str(self.graph.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=step.eps))

    def round(self, step: Round, x: str) -> str:
        return encode(self.graph, step.site, self.bundle.codec(step.site), x, step.reverse).decoded(self.graph)

    def rotate(self, step: Rotate, x: str) -> str:
        matrix, divisor = self.bundle.rotation(step.site)
        dense = rotate(np.eye(len(divisor), dtype=np.float32), np.float32(1) / divisor, matrix)
        return str(self.graph.node("MatMul", x, self.graph.constant(dense)))


def _silu(graph: Graph, x: str) -> str:
    return graph.mul(x, graph.node("Sigmoid", x))


def _softplus(graph: Graph, x: str) -> str:
    """max(x, log(1 + e^min(x, 20))): runtimes have fast kernels for these, and beyond 20 the function is x."""
    small = graph.node("Min", x, graph.constant(np.float32(20)))
    one = graph.constant(np.float32(1))
    return str(graph.node("Max", x, graph.node("Log", graph.add(one, graph.node("Exp", small)))))


#: ONNX forms of the elementwise row instructions with one operand.
UNARY: dict[str, Callable[[Graph, str], str]] = {
    "silu": _silu,
    "softplus": _softplus,
    "gelu": lambda graph, x: str(graph.node("Gelu", x)),
    "gelu_tanh": lambda graph, x: str(graph.node("Gelu", x, approximate="tanh")),
    "sigmoid": lambda graph, x: str(graph.node("Sigmoid", x)),
    "relu": lambda graph, x: str(graph.node("Relu", x)),
    "neg": lambda graph, x: str(graph.node("Neg", x)),
}

_SOURCES: dict[type, Callable[[_Export, Any, Form], str]] = {
    Patches: _Export.patches,
    Linear: _Export.linear,
    Conv1d: _Export.conv1d,
    Conv2d: _Export.conv2d,
    DenseConv2d: _Export.dense_conv2d,
    PixelShuffle: _Export.pixel_shuffle,
    Transpose: _Export.transpose,
    Mean: _Export.mean,
    Scan: _Export.scan,
    Concat: _Export.concat,
}

_INSTRUCTIONS: dict[type, Callable[[_Export, Any, str], str]] = {
    Slice: _Export.slice,
    Unary: _Export.unary,
    WithConstant: _Export.with_constant,
    AddValues: _Export.add_values,
    WithScalar: _Export.with_scalar,
    RmsNorm: _Export.rms_norm,
    LayerNorm: _Export.layer_norm,
    Round: _Export.round,
    Rotate: _Export.rotate,
}
