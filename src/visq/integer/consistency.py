"""Checks that operations fit together: tensors and registers are written once, before they are read, and shapes fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from visq.integer.operations import (
    MAX_SIZE,
    AddValues,
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
    Slice,
    Store,
    TensorDecl,
    Transpose,
    Turn,
    half,
    inputs,
)

#: Two numbers: along the height, and along the width.
Pair = tuple[int, int]


def check_operations(
    operations: Iterable[Operation], tensors: Mapping[str, TensorDecl], output: str, image: tuple[int, int, int]
) -> None:
    """Checks all operations of a program; `image` is (channels, height, width).

    Raises:
        ValueError: operations or tensors do not fit together. The message names the operation and the fault.
    """
    written: set[str] = set()
    for name, decl in tensors.items():
        if decl.length is not None and (decl.reverse or decl.rows % decl.length):
            raise ValueError(f"tensor {name}: its {decl.rows} rows are no sequences of {decl.length}, or run backward")
    for operation in operations:
        _Check(operation, tensors, written, image).run()
    if output not in written:
        raise ValueError(f"output {output} is never written")


def map_size(decl: TensorDecl) -> tuple[int, int]:
    """Returns (height, width) of the map that a tensor holds. Raises ValueError unless it holds one."""
    height = math.isqrt(decl.rows) if decl.height is None else decl.height
    if decl.rows % height or (decl.height is None and height * height != decl.rows):
        raise ValueError(f"{decl.rows} rows are no square map" + (f" {height} high" if decl.height else ""))
    return height, decl.rows // height


def register_widths(operation: Operation, tensors: Mapping[str, TensorDecl]) -> dict[int, int]:
    """Returns the width of every register, by number, of an operation that was already checked."""
    stored = {step.tensor for step in operation.body if isinstance(step, Store)}
    check = _Check(operation, tensors, set(tensors) - stored, (0, 0, 0))
    check.start()
    for step in operation.body:
        check.instruction(step)
    return check.registers


def covered(source: EnterWindows | LeaveWindows) -> int:
    """Returns the positions of the windows that cover a map, those outside the map included."""
    return int((-(-source.side // source.window) * source.window) ** 2)


@dataclass
class _Check:
    """The check of one operation; `written` holds the tensors stored so far, and the check adds to it."""

    operation: Operation
    tensors: Mapping[str, TensorDecl]
    written: set[str]
    image: tuple[int, int, int]
    #: Width of every register written so far.
    registers: dict[int, int] = field(default_factory=dict)

    def run(self) -> None:
        source = self.operation.source
        for name in inputs(source):
            self.declared(name)
            self.need(name in self.written, f"tensor {name} is read before it is written")
        if check := _SOURCES.get(type(source)):
            check(self, source)
        self.start()
        for step in self.operation.body:
            self.instruction(step)

    def start(self) -> None:
        """Notes the width of register 0, which holds the source's row; `Rows` has none."""
        if not isinstance(self.operation.source, Rows):
            self.registers[0] = self.operation.width

    def need(self, condition: bool, what: str) -> None:
        if not condition:
            raise ValueError(f"operation {self.operation.name}: {what}")

    def declared(self, name: str) -> TensorDecl:
        self.need(name in self.tensors, f"tensor {name} is not declared")
        return self.tensors[name]

    def map_of(self, name: str) -> tuple[int, int]:
        """Returns (height, width) of the map `name`."""
        try:
            return map_size(self.declared(name))
        except ValueError:
            self.need(False, f"{name} is no square map")
            raise

    def windows(self, sides: Pair, kernel: Pair, stride: Pair, padding: Pair) -> None:
        """Checks that a map has one window for each row of the operation, and that each window meets it."""
        count = 1
        for side, length, step, around in zip(sides, kernel, stride, padding, strict=True):
            self.need(around < length, "windows that lie outside")
            self.need(length <= side + 2 * around, "the patch is larger than the image")
            count *= (side + 2 * around - length) // step + 1
        self.need(self.operation.rows == count, "rows are not the number of patches")

    def same_shape(self, name: str, what: str) -> None:
        decl = self.declared(name)
        self.need((decl.rows, decl.width) == (self.operation.rows, self.operation.width), what)

    # --- sources

    def patches(self, source: Patches) -> None:
        channels, *sides = self.image
        size = sides[0], sides[1]
        if source.input is not None:
            size, channels = self.map_of(source.input), self.declared(source.input).width
        self.windows(size, (source.patch,) * 2, (source.stride,) * 2, (source.padding,) * 2)
        self.need(self.operation.width == channels * source.patch**2, "width is not that of a patch")

    def linear(self, source: Linear) -> None:
        self.need(self.declared(source.input).rows == self.operation.rows, "rows are not those of the input")

    def conv1d(self, source: Conv1d) -> None:
        self.same_shape(source.input, "shape is not that of the input")
        self.sequences(source.length or self.operation.rows)

    def sequences(self, length: int) -> None:
        """Checks that the rows are sequences of `length` rows."""
        self.need(self.operation.rows % length == 0, f"rows are no sequences of {length}")

    def attention(self, source: Attention) -> None:
        for name in (source.q, source.k, source.v):
            self.same_shape(name, f"{name} has another shape")
        self.sequences(source.length)
        self.need(self.operation.width % source.heads == 0, "the heads do not share the channels out")
        self.need(source.heads * source.length <= MAX_SIZE, "too many heads and keys")

    def enter_windows(self, source: EnterWindows) -> None:
        self.in_windows(source, (source.side**2, covered(source)))

    def leave_windows(self, source: LeaveWindows) -> None:
        self.in_windows(source, (covered(source), source.side**2))

    def in_windows(self, source: EnterWindows | LeaveWindows, rows: tuple[int, int]) -> None:
        """Checks that the input and the operation have these rows, and one width."""
        decl = self.declared(source.input)
        self.need((decl.rows, self.operation.rows) == rows, "rows are not those of the map and its windows")
        self.need(decl.width == self.operation.width, "width is not that of the input")

    def conv2d(self, source: Conv2d) -> None:
        self.windows(self.map_of(source.input), (source.kernel,) * 2, (1, 1), (source.padding,) * 2)
        self.need(self.declared(source.input).width == self.operation.width, "width is not that of the input")

    def dense_conv2d(self, source: DenseConv2d) -> None:
        self.windows(self.map_of(source.input), source.kernel, source.stride, source.padding)
        elements = math.prod(source.kernel) * self.declared(source.input).width
        self.need(elements <= MAX_SIZE, f"a window has {elements} elements")

    def pixel_shuffle(self, source: PixelShuffle) -> None:
        self.map_of(source.input)
        x, square = self.declared(source.input), source.scale**2
        fits = (x.rows * square, x.width) == (self.operation.rows, self.operation.width * square)
        self.need(fits, "shape is not that of the shuffled input")

    def bilinear(self, source: Bilinear) -> None:
        self.map_of(source.input)
        height, width = self.map_of(source.like)
        shape = (height * width, self.declared(source.input).width)
        self.need(shape == (self.operation.rows, self.operation.width), "shape is not that of the resampled input")

    def average_pool(self, source: AveragePool) -> None:
        self.map_of(source.input)
        shape = (source.height * source.width, self.declared(source.input).width)
        self.need(shape == (self.operation.rows, self.operation.width), "shape is not that of the parts' means")

    def transpose(self, source: Transpose) -> None:
        self.same_shape(source.input, "shape is not that of the input")
        self.need(source.height * source.width == self.operation.rows, "the map has another number of rows")

    def sample(self, source: Sample) -> None:
        decl = self.declared(source.input)
        rows = (decl.rows, self.operation.rows)
        fits = rows == (source.height * source.width, math.prod(source.size)) and decl.width == self.operation.width
        self.need(fits, "shape is not that of a sample of the map")

    def merge_samples(self, source: MergeSamples) -> None:
        self.need(self.operation.rows == source.height * source.width, "the map has another number of rows")
        shape = (half(source.height) * half(source.width), self.operation.width)
        for name in source.inputs:
            decl = self.declared(name)
            self.need((decl.rows, decl.width) == shape, f"{name} is no sample of the map")

    def mean(self, source: Mean) -> None:
        shape = (self.operation.rows, self.operation.width)
        self.need(shape == (1, self.declared(source.input).width), "a mean is one row of the input")

    def scan(self, source: Scan) -> None:
        for name in (source.u, source.delta):
            self.same_shape(name, f"{name} has another shape")
        self.sequences(source.length or self.operation.rows)
        self.need(source.length is None or not source.reverse, "sequences are scanned forward")
        B, C = self.declared(source.B), self.declared(source.C)
        self.need(B.length == C.length == source.length, "B and C are other sequences")
        self.need(B.rows == C.rows == self.operation.rows and B.width == C.width, "B and C do not fit")

    def concat(self, source: Concat) -> None:
        count = 0
        for part in source.parts:
            if isinstance(part, Constant):
                count += 1
                continue
            name, first, rows = part
            decl = self.declared(name)
            fits = first + rows <= decl.rows and decl.width == self.operation.width
            self.need(fits, f"{name} does not fit")
            count += rows
        self.need(count == self.operation.rows, "rows are not those of the parts")

    # --- row instructions

    def width(self, register: int) -> int:
        self.need(register in self.registers, f"register {register} is read before it is written")
        return self.registers[register]

    def instruction(self, step: Any) -> None:
        if isinstance(step, Store):
            self.store(step)
            return
        if isinstance(step, Load):
            size = self.load(step)
        elif isinstance(step, Slice):
            self.need(step.offset + step.width <= self.width(step.src), "a slice beyond its register")
            size = step.width
        elif isinstance(step, Append):
            size = self.width(step.a) + self.width(step.b)
        elif isinstance(step, Binary):
            size = self.width(step.a)
            self.need(self.width(step.b) == size, "registers of different widths")
        else:
            size = self.width(step.src)
        if isinstance(step, Turn):
            self.need(size % 2 == 0, f"{size} channels are not pairs")
        if isinstance(step, AddValues):
            self.need(len(step.values) == size, f"{len(step.values)} values for {size} channels")
        self.need(step.dst not in self.registers, f"register {step.dst} is written twice")
        self.registers[step.dst] = size

    def store(self, step: Store) -> None:
        decl = self.declared(step.tensor)
        fits = (decl.rows, decl.width) == (self.operation.rows, self.width(step.src))
        self.need(fits, f"{step.tensor} has another shape")
        self.need(step.tensor not in self.written, f"{step.tensor} is written twice")
        self.written.add(step.tensor)

    def load(self, step: Load) -> int:
        decl = self.declared(step.tensor)
        self.need(step.tensor in self.written, f"tensor {step.tensor} is read before it is written")
        own = any(isinstance(other, Store) and other.tensor == step.tensor for other in self.operation.body)
        self.need(step.row is None or not own, f"reads a row of {step.tensor}, which is not all written yet")
        there = decl.rows == self.operation.rows if step.row is None else step.row < decl.rows
        self.need(there, f"{step.tensor}: no such row")
        return decl.width


#: The check of each type of source. `Rows` has nothing to check.
_SOURCES: dict[type, Callable[[_Check, Any], None]] = {
    Patches: _Check.patches,
    Linear: _Check.linear,
    Conv1d: _Check.conv1d,
    Conv2d: _Check.conv2d,
    DenseConv2d: _Check.dense_conv2d,
    PixelShuffle: _Check.pixel_shuffle,
    Bilinear: _Check.bilinear,
    AveragePool: _Check.average_pool,
    Attention: _Check.attention,
    EnterWindows: _Check.enter_windows,
    LeaveWindows: _Check.leave_windows,
    Transpose: _Check.transpose,
    Sample: _Check.sample,
    MergeSamples: _Check.merge_samples,
    Mean: _Check.mean,
    Scan: _Check.scan,
    Concat: _Check.concat,
}
