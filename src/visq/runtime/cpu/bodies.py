"""Writes an operation's body into the flat file: one function for each row instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from visq.integer.operations import (
    AddValues,
    Append,
    Binary,
    LayerNorm,
    Load,
    Operation,
    RmsNorm,
    Rotate,
    Round,
    Slice,
    Store,
    Turn,
    Unary,
    WithConstant,
    WithScalar,
)
from visq.integer.program import Program
from visq.native.flat_file import FlatFile
from visq.native.memory import LANES, Arena, flat, pad
from visq.runtime.bundle import Bundle
from visq.runtime.cpu.codecs import CodecTable
from visq.runtime.cpu.schedule import origins, reads_registers


class Body:
    """The body of one operation, written into the file instruction by instruction.

    Arguments:
        tensors: the file's index of every tensor written so far, by name.
        duplicates: by name of a tensor that is not stored, the stored tensor with the same content.
    """

    def __init__(
        self,
        program: Program,
        operation: Operation,
        bundle: Bundle,
        file: FlatFile,
        codecs: CodecTable,
        tensors: dict[str, int],
        duplicates: dict[str, str],
    ) -> None:
        self.program, self.operation, self.bundle, self.file = program, operation, bundle, file
        self.codecs, self.tensors, self.duplicates = codecs, tensors, duplicates
        self.slots = Slots(operation)

    def write(self, written_by_scan: Store | Round | None, y: int) -> None:
        """Writes every instruction except `written_by_scan`, whose codes the scan itself stores in tensor `y`."""
        for index, step in enumerate(self.operation.body):
            if step is not written_by_scan:
                _INSTRUCTIONS[type(step)](self, step)
            elif isinstance(step, Round):
                self.file.add("load", step.dst, y, -1, self.slots.take(step.dst, self.operation.width))
            self.slots.free_after(index)

    def slot(self, step: Any) -> int:
        """Takes memory for a result as wide as the register `step.src`, and returns its offset."""
        return self.slots.take(step.dst, self.slots.width[step.src])

    def store(self, step: Store) -> None:
        if step.tensor not in self.duplicates:
            self.file.add("store", step.src, self.tensors[step.tensor])

    def load(self, step: Load) -> None:
        slot = self.slots.take(step.dst, self.program.tensors[step.tensor].width)
        self.file.add("load", step.dst, self.tensors[step.tensor], -1 if step.row is None else step.row, slot)

    def slice(self, step: Slice) -> None:
        self.slots.width[step.dst] = step.width
        self.file.add("slice", step.dst, step.src, step.offset, step.width)

    def unary(self, step: Unary) -> None:
        self.file.add("unary", step.op, step.dst, step.src, self.slot(step))

    def binary(self, step: Binary) -> None:
        slot = self.slots.take(step.dst, self.slots.width[step.a])
        self.file.add("binary", step.op, step.dst, step.a, step.b, slot)

    def append(self, step: Append) -> None:
        slot = self.slots.take(step.dst, self.slots.width[step.a] + self.slots.width[step.b])
        self.file.add("append", step.dst, step.a, step.b, slot)

    def turn(self, step: Turn) -> None:
        self.file.add("turn", step.dst, step.src, self.slot(step))

    def with_constant(self, step: WithConstant) -> None:
        value = flat(self.bundle.constant(step.constant))
        self.file.add("with_constant", step.op, step.dst, step.src, value, self.slot(step))

    def add_values(self, step: AddValues) -> None:
        values = np.array(step.values, np.float32)
        self.file.add("with_constant", "add_constant", step.dst, step.src, values, self.slot(step))

    def with_scalar(self, step: WithScalar) -> None:
        self.file.add("mul_scalar", step.dst, step.src, float(step.value), self.slot(step))

    def rms_norm(self, step: RmsNorm) -> None:
        weight = flat(self.bundle.constant(step.weight))
        self.file.add("rms_norm", step.dst, step.src, weight, float(step.eps), self.slot(step))

    def layer_norm(self, step: LayerNorm) -> None:
        weight, bias = flat(self.bundle.constant(step.weight)), flat(self.bundle.constant(step.bias))
        self.file.add("layer_norm", step.dst, step.src, weight, bias, float(step.eps), self.slot(step))

    def round(self, step: Round) -> None:
        codec = self.codecs.index(step.site, self.operation.rows, self.slots.width[step.src], step.reverse, step.length)
        self.file.add("round", step.dst, step.src, codec, self.slot(step))

    def rotate(self, step: Rotate) -> None:
        matrix, divisor = self.bundle.rotation(step.site)
        width = self.slots.width[step.src]
        slot = self.slots.take(step.dst, width, rotation_room(width, len(matrix)))
        self.file.add("rotate", step.dst, step.src, flat(np.float32(1) / divisor), flat(matrix), slot)


_INSTRUCTIONS: dict[type, Callable[[Body, Any], None]] = {
    Store: Body.store,
    Load: Body.load,
    Slice: Body.slice,
    Unary: Body.unary,
    Turn: Body.turn,
    Binary: Body.binary,
    Append: Body.append,
    WithConstant: Body.with_constant,
    AddValues: Body.add_values,
    WithScalar: Body.with_scalar,
    RmsNorm: Body.rms_norm,
    LayerNorm: Body.layer_norm,
    Round: Body.round,
    Rotate: Body.rotate,
}


class Slots:
    """The places of a body's registers in a row of float32; memory is used again after a register's last reader.

    Attributes:
        width: the width of every register written so far.
    """

    def __init__(self, operation: Operation) -> None:
        self.width = {0: operation.width}
        self._room = Arena(LANES)
        self._offset: dict[int, int] = {}
        self._last_reader: dict[int, int] = {}
        registers = origins(operation)
        for index, step in enumerate(operation.body):
            for register in reads_registers(step):
                self._last_reader[registers[register][0]] = index
            if not isinstance(step, Store):
                self._last_reader.setdefault(registers[step.dst][0], index)

    def take(self, register: int, width: int, extra: int = 0) -> int:
        """Returns the offset of a new register, with `extra` floats behind it."""
        self.width[register] = width
        self._offset[register] = self._room.take(pad(width, LANES) + extra)
        return self._offset[register]

    def free_after(self, index: int) -> None:
        """Frees the registers that no instruction after `index` reads."""
        for register, last in self._last_reader.items():
            if last == index and register in self._offset:
                self._room.free(self._offset[register])


def rotation_room(width: int, order: int) -> int:
    """Returns the floats a rotation by a matrix [order, order] needs beside its result.

    A rotation by one full matrix needs room for its input. Otherwise it needs two rows of sums and differences, and
    one of products, all padded.
    """
    row = pad(width, LANES)
    return row if order == width else 2 * (row + LANES) + width // order * pad(order, LANES)
