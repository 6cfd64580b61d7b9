"""Writes the values of an operation's registers, and finds which of its stores one kernel can compute together.

A register's value is written where a store needs it, a block of channels at a time. What needs other channels (a norm,
a rotation, a turn, appended channels) reads them from memory: its operands are stored first, by an earlier step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from visq.errors import VisqError
from visq.integer.consistency import register_widths
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
from visq.runtime.bundle import Bundle
from visq.runtime.cuda.codecs import SiteCodes, site_codes
from visq.runtime.cuda.instructions import EXPRESSIONS
from visq.runtime.cuda.text import At, Place, Text

#: Instructions that need other channels of their operands than the one they compute.
OTHER_CHANNELS = (RmsNorm, LayerNorm, Rotate, Turn, Append)


@dataclass(frozen=True)
class Stored:
    """What a kernel of an operation stores: a register, as codes or float32, in a place."""

    register: int
    place: Place
    codes: SiteCodes | None


@dataclass(frozen=True)
class Piece:
    """Stores of an operation that one kernel computes, block by block of `width` channels.

    Attributes:
        stage: how many operands must have been stored before.
        offsets: channels of register 0 at which the source is needed for channel 0.
        elementwise: whether nothing but register 0 and its row is read.
    """

    stage: int
    width: int
    offsets: tuple[int, ...]
    elementwise: bool
    stores: tuple[Stored, ...]


@dataclass(frozen=True)
class _Needs:
    stage: int = 0
    offsets: frozenset[int] = frozenset()
    loads: bool = False

    def joined(self, other: _Needs) -> _Needs:
        return _Needs(max(self.stage, other.stage), self.offsets | other.offsets, self.loads or other.loads)


class Body:
    """The body of one operation.

    Arguments:
        places: every tensor of the program by name.
        index: the operation's number in the program.

    Attributes:
        in_memory: for each register of which an instruction needs other channels, the place of its row in float32.
        turned: for each rotation, by its result, the place of its operand after sums and differences.

    Raises:
        VisqError: an instruction is not in the table; the message names it.
    """

    def __init__(
        self, program: Program, operation: Operation, bundle: Bundle, places: dict[str, Place], index: int
    ) -> None:
        self.program, self.operation, self.bundle, self.places, self.index = program, operation, bundle, places, index
        self.widths = register_widths(operation, program.tensors)
        self.steps: dict[int, Any] = {}
        self.own: dict[str, Store] = {}
        self.stores: list[Stored] = []
        for step in operation.body:
            self._check(step)
            if isinstance(step, Store):
                self.own[step.tensor] = step
                self.stores.append(Stored(step.src, places[step.tensor], self.codes_of(step.tensor)))
            else:
                self.steps[step.dst] = step
        self.in_memory: dict[int, Place] = {}
        self.turned: dict[int, Place] = {}
        for register, step in self.steps.items():
            if isinstance(step, OTHER_CHANNELS):
                for operand in _operands(step):
                    if not (isinstance(step, Append) and self.loaded(operand)):
                        self.in_memory[operand] = self._in_memory(operand)
                if isinstance(step, Rotate):
                    self.turned[register] = self.temporary(f"turned {register}", self.widths[step.src])

    def _check(self, step: Any) -> None:
        if not isinstance(step, Store) and type(step) not in _VALUES:
            raise unsupported(self.operation, f"instruction {step.op}")
        if isinstance(step, Unary | Binary) and step.op not in EXPRESSIONS:
            raise unsupported(self.operation, f"row instruction {step.op}")

    def codes_of(self, tensor: str) -> SiteCodes | None:
        """Returns the codes a tensor of the program holds; None for float32."""
        decl = self.program.tensors[tensor]
        return (
            None
            if decl.site is None
            else site_codes(self.bundle, decl.site, decl.rows, decl.width, decl.reverse, decl.length)
        )

    def temporary(self, what: str, width: int) -> Place:
        """Returns a place for a float32 row of the operation, which nothing after it reads."""
        return Place(f"operation {self.index}: {what}", self.operation.rows, width, coded=False, temporary=True)

    def loaded(self, register: int) -> str | None:
        """Returns the tensor that a register is the row of, if an earlier operation wrote it; None otherwise."""
        step = self.steps.get(register)
        if isinstance(step, Load) and step.row is None and step.tensor not in self.own:
            return step.tensor
        return None

    def _in_memory(self, register: int) -> Place:
        """Returns where the row of a register is in float32; it is stored for that if it is nowhere yet."""
        if (tensor := self.loaded(register)) is not None and not self.places[tensor].coded:
            return self.places[tensor]
        for stored in self.stores:
            if stored.register == register and stored.codes is None:
                return stored.place
        place = self.temporary(f"register {register}", self.widths[register])
        self.stores.append(Stored(register, place, None))
        return place

    # --- what to compute together

    def pieces(self) -> list[Piece]:
        """Returns the pieces of the operation in the order they must run."""
        found: dict[tuple[int, int, tuple[int, ...]], list[tuple[Stored, bool]]] = {}
        for stored in self.stores:
            needs = self._needs(stored.register, 0)
            key = (needs.stage, stored.place.width, tuple(sorted(needs.offsets)))
            found.setdefault(key, []).append((stored, needs.loads))
        return [
            Piece(stage, width, offsets, not any(loads for _, loads in group), tuple(stored for stored, _ in group))
            for (stage, width, offsets), group in sorted(found.items(), key=lambda item: item[0][:2])
        ]

    def _needs(self, register: int, offset: int) -> _Needs:
        step = self.steps.get(register)
        if step is None:
            return _Needs(offsets=frozenset([offset]))
        if isinstance(step, Load):
            own = self.own.get(step.tensor)
            return _Needs(loads=True) if own is None else self._needs(own.src, offset)
        if isinstance(step, OTHER_CHANNELS):
            return _Needs(stage=max(self._needs(operand, 0).stage for operand in _operands(step)) + 1, loads=True)
        if isinstance(step, Binary):
            return self._needs(step.a, offset).joined(self._needs(step.b, offset))
        return self._needs(step.src, offset + (step.offset if isinstance(step, Slice) else 0))


class Values:
    """Writes the values of a body's registers into a kernel.

    Arguments:
        source: writes register 0 from a channel on.
        at: the rows and channels that the kernel computes.
    """

    def __init__(self, body: Body, text: Text, at: At, source: Callable[[int], str]) -> None:
        self.body, self.text, self.at, self.source = body, text, at, source
        self._known: dict[tuple[int, int], str] = {}

    def store(self, stored: Stored) -> None:
        """Writes a store."""
        value = self.value(stored.register, 0)
        if stored.codes is not None:
            value = f"{stored.codes.encode(self.text, value, self.at)}.to(tl.uint8)"
        pointer = f"{self.text.place(stored.place)} + {self.at.row} * {stored.place.width} + {self.at.column}"
        self.text.line(f"tl.store({pointer}, {value}, mask={self.at.has})")

    def value(self, register: int, offset: int) -> str:
        """Writes a register's value at the kernel's channels plus `offset`."""
        key = (register, offset)
        if key not in self._known:
            step = self.body.steps.get(register)
            self._known[key] = self.source(offset) if step is None else _VALUES[type(step)](self, step, offset)
        return self._known[key]

    def shifted(self, offset: int) -> At:
        """Returns the kernel's rows and channels, `offset` channels further."""
        return shifted(self.text, self.at, offset)

    # --- instructions

    def load(self, step: Load, offset: int) -> str:
        body, at = self.body, self.shifted(offset)
        place, codes = body.places[step.tensor], body.codes_of(step.tensor)
        own = body.own.get(step.tensor)
        if own is not None:
            x = self.value(own.src, offset)
            return x if codes is None else codes.decode(self.text, codes.encode(self.text, x, at), at)
        if step.row is not None:
            row = self.text.let(f"({at.row} // {body.operation.rows}) * {place.rows} + {step.row}")
            at = replace(at, row=row, token=self.text.let(f"{at.token} * 0 + {step.row}"))
        return read(self.text, place, codes, at)

    def slice(self, step: Slice, offset: int) -> str:
        return self.value(step.src, offset + step.offset)

    def unary(self, step: Unary, offset: int) -> str:
        return self.text.let(EXPRESSIONS[step.op].format(a=self.value(step.src, offset)))

    def binary(self, step: Binary, offset: int) -> str:
        a, b = self.value(step.a, offset), self.value(step.b, offset)
        return self.text.let(EXPRESSIONS[step.op].format(a=a, b=b))

    def with_constant(self, step: WithConstant, offset: int) -> str:
        x, at = self.value(step.src, offset), self.shifted(offset)
        width = self.body.widths[step.src]
        value = self.body.bundle.constant(step.constant).reshape(-1, width)
        name = self.text.parameter(value)
        index = at.column if len(value) == 1 else f"{at.token} * {width} + {at.column}"
        constant = self.text.load(f"{name} + {index}", at.has_column if len(value) == 1 else at.has, "0.0")
        return self.text.let(f"{x} {'+' if step.op == 'add_constant' else '*'} {constant}")

    def add_values(self, step: AddValues, offset: int) -> str:
        x, at = self.value(step.src, offset), self.shifted(offset)
        values = self.text.parameter(np.array(step.values, np.float32))
        return self.text.let(f"{x} + {self.text.load(f'{values} + {at.column}', at.has_column, '0.0')}")

    def with_scalar(self, step: WithScalar, offset: int) -> str:
        return self.text.let(f"{self.value(step.src, offset)} * {self._number(step.value)}")

    def round(self, step: Round, offset: int) -> str:
        x, at, operation = self.value(step.src, offset), self.shifted(offset), self.body.operation
        codes = site_codes(
            self.body.bundle, step.site, operation.rows, self.body.widths[step.src], step.reverse, step.length
        )
        return codes.decode(self.text, codes.encode(self.text, x, at), at)

    def rms_norm(self, step: RmsNorm, offset: int) -> str:
        place, at = self.body.in_memory[step.src], self.shifted(offset)
        with self.text.before_loop():
            total = self.text.let(f"k.sum_of_squares({self.text.place(place)}, {at.row}, {at.has_row}, {place.width})")
            mean = self.text.let(f"{total} * {self._number(1 / place.width)}")
            factor = self.text.let(f"k.inverse(tl.math.sqrt_rn({mean} + {self._number(step.eps)}))")
        x = self.text.let(f"{read(self.text, place, None, at)} * {factor}")
        return self.text.let(f"{x} * {self._channels(step.weight, at)}")

    def layer_norm(self, step: LayerNorm, offset: int) -> str:
        place, at = self.body.in_memory[step.src], self.shifted(offset)
        rows = f"{self.text.place(place)}, {at.row}, {at.has_row}"
        with self.text.before_loop():
            mean = self.text.let(f"k.row_mean({rows}, {place.width})")
            variance = self.text.let(f"k.row_variance({rows}, {mean}, {place.width})")
            factor = self.text.let(f"k.inverse(tl.math.sqrt_rn({variance} + {self._number(step.eps)}))")
        x = self.text.let(f"({read(self.text, place, None, at)} - {mean}) * {factor}")
        return self.text.let(f"{x} * {self._channels(step.weight, at)} + {self._channels(step.bias, at)}")

    def rotate(self, step: Rotate, offset: int) -> str:
        place, at = self.body.turned[step.dst], self.shifted(offset)
        matrix, _ = self.body.bundle.rotation(step.site)
        names = f"{self.text.place(place)}, {self.text.parameter(matrix)}"
        return self.text.let(f"k.rotated({names}, {at.row}, {at.column}, {at.has}, {place.width}, {len(matrix)})")

    def turn(self, step: Turn, offset: int) -> str:
        at = self.shifted(offset)
        other = replace(at, column=self.text.let(f"{at.column} ^ 1"))
        x = read(self.text, self.body.in_memory[step.src], None, other)
        return self.text.let(f"tl.where({at.column} % 2 == 0, -{x}, {x})")

    def append(self, step: Append, offset: int) -> str:
        at, width = self.shifted(offset), self.body.widths[step.a]
        first = self.text.let(f"{at.column} < {width}")
        a = self._row(step.a, replace(at, has_column=self.text.let(f"({at.has_column}) & {first}")))
        column = self.text.let(f"{at.column} - {width}")
        rest = self.text.let(f"({at.has_column}) & ({column} >= 0)")
        b = self._row(step.b, replace(at, column=column, has_column=rest))
        return self.text.let(f"tl.where({first}, {a}, {b})")

    def _row(self, register: int, at: At) -> str:
        """Writes a register's value at other channels than those of the kernel."""
        tensor = self.body.loaded(register)
        if tensor is not None:
            return read(self.text, self.body.places[tensor], self.body.codes_of(tensor), at)
        return read(self.text, self.body.in_memory[register], None, at)

    def _number(self, value: float) -> str:
        return self.text.load(self.text.parameter(np.array([value], np.float32)), None)

    def _channels(self, constant: Any, at: At) -> str:
        value = self.body.bundle.constant(constant).reshape(-1)
        return self.text.load(f"{self.text.parameter(value)} + {at.column}", at.has_column, "0.0")


def _operands(step: Any) -> tuple[int, ...]:
    return (step.a, step.b) if isinstance(step, Append) else (step.src,)


def read(text: Text, place: Place, codes: SiteCodes | None, at: At) -> str:
    """Writes the float32 values of a place, decoded where it holds codes."""
    value = text.load(f"{text.place(place)} + {at.row} * {place.width} + {at.column}", at.has)
    return value if codes is None else codes.decode(text, value, at)


def shifted(text: Text, at: At, offset: int) -> At:
    """Returns the same rows, and channels `offset` further."""
    return at if offset == 0 else At(at.row, at.token, text.let(f"{at.column} + {offset}"), at.has_row, at.has_column)


def unsupported(operation: Operation, what: str) -> VisqError:
    """Returns the error of an operation that the CUDA engine cannot run."""
    return VisqError(
        f"operation {operation.name}: the engine on CUDA has no {what}; "
        "run the artifact with backend 'int', which has every operation"
    )


_VALUES: dict[type, Callable[[Values, Any, int], str]] = {
    Load: Values.load,
    Slice: Values.slice,
    Unary: Values.unary,
    Binary: Values.binary,
    WithConstant: Values.with_constant,
    AddValues: Values.add_values,
    WithScalar: Values.with_scalar,
    Round: Values.round,
    RmsNorm: Values.rms_norm,
    LayerNorm: Values.layer_norm,
    Rotate: Values.rotate,
    Turn: Values.turn,
    Append: Values.append,
}
