"""Writes the text of one Triton kernel: names for values, arguments in order, loops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Place:
    """A tensor of the program or a temporary one, [batch * rows, width] in the engine's memory.

    Attributes:
        coded: whether it holds bytes; otherwise float32.
        temporary: whether only one operation uses it.
    """

    name: str
    rows: int
    width: int
    coded: bool
    temporary: bool = False

    @property
    def bytes_an_image(self) -> int:
        return self.rows * self.width * (1 if self.coded else 4)


@dataclass(frozen=True)
class At:
    """Where a kernel reads or writes, as expressions that broadcast against each other.

    Attributes:
        row: row of a tensor with all images, int64.
        token: row in the image, int32.
        column: channel, int32.
        has_row, has_column: masks; None where every index is inside.
    """

    row: str
    token: str
    column: str
    has_row: str | None
    has_column: str | None

    @property
    def has(self) -> str | None:
        """The mask of both; None where every index is inside."""
        masks = [mask for mask in (self.has_row, self.has_column) if mask is not None]
        return " & ".join(f"({mask})" for mask in masks) or None


class Arguments:
    """Holds what a kernel takes, in order: places and parameters. Equal ones are one argument.

    Attributes:
        values: the arguments.
    """

    def __init__(self) -> None:
        self.values: list[Place | np.ndarray] = []
        self._names: dict[object, str] = {}

    def name(self, value: Place | np.ndarray) -> str:
        """Returns the name of the argument that points to a place or a parameter."""
        key = value.name if isinstance(value, Place) else (value.dtype.str, value.shape, value.tobytes())
        if key not in self._names:
            self._names[key] = f"P{len(self.values)}"
            self.values.append(value)
        return self._names[key]

    @property
    def names(self) -> str:
        """All names, with commas between them."""
        return ", ".join(f"P{i}" for i in range(len(self.values)))


class Text:
    """Holds the text of a Triton function while it is written."""

    def __init__(self) -> None:
        self._arguments = Arguments()
        self._lines: list[str] = []
        self._known: list[dict[str, str]] = [{}]
        self._starts: list[int] = []
        self._count = 0

    @property
    def arguments(self) -> list[Place | np.ndarray]:
        """Returns what the function takes, in order."""
        return self._arguments.values

    def place(self, place: Place) -> str:
        """Returns the argument that points to a place."""
        return self._arguments.name(place)

    def parameter(self, value: np.ndarray) -> str:
        """Returns the argument that points to a parameter; equal ones share it."""
        return self._arguments.name(np.ascontiguousarray(value))

    def let(self, expression: str) -> str:
        """Returns a name for the value of an expression without side effects; the same one for the same expression."""
        for known in self._known:
            if expression in known:
                return known[expression]
        name = self.fresh()
        self.line(f"{name} = {expression}")
        self._known[-1][expression] = name
        return name

    def fresh(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def zeros(self, has: object) -> str:
        """Returns a name for float32 zeros of the shape of a mask, which further lines may add to."""
        name = self.fresh()
        self.line(f"{name} = tl.zeros(({has}).shape, tl.float32)")
        return name

    def line(self, text: str) -> None:
        self._lines.append("    " * len(self._known) + text)

    @contextlib.contextmanager
    def loop(self, header: str) -> Iterator[None]:
        """Writes a loop; what is named inside is unknown after it."""
        self._starts.append(len(self._lines))
        self.line(header)
        self._known.append({})
        yield
        self._known.pop()
        self._starts.pop()

    @contextlib.contextmanager
    def before_loop(self) -> Iterator[None]:
        """Writes in front of the innermost loop what is the same in all its turns."""
        start, inside = self._starts.pop(), self._known.pop()
        loop = self._lines[start:]
        del self._lines[start:]
        yield
        self._starts.append(len(self._lines))
        self._known.append(inside)
        self._lines += loop

    def load(self, pointer: str, mask: str | None, other: str = "0") -> str:
        return self.let(f"tl.load({pointer})" if mask is None else f"tl.load({pointer}, mask={mask}, other={other})")

    def vector(self, value: np.ndarray, index: str, mask: str | None, other: str = "0") -> str:
        """Returns an element of a vector, or its only one."""
        name = self.parameter(value)
        return self.load(name, None) if value.size == 1 else self.load(f"{name} + {index}", mask, other)

    def function(self, name: str, parameters: str) -> str:
        """Returns the whole function; `parameters` follow its arguments."""
        return "\n".join([f"def {name}({self._arguments.names}, {parameters}):", *self._lines, ""])


def begin_tile(text: Text, rows: int) -> None:
    """Writes the rows of a tile: `row` of all images, its number `t` in its image, and whether it is there, `has_m`."""
    text.line("m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]")
    text.line("has_m = m < M")
    text.line("row = m.to(tl.int64)")
    text.line(f"t = k.unknown(m % {rows})")


def power_of_two(size: int) -> int:
    """Returns the least power of two that is not below size."""
    return 1 << max(size - 1, 0).bit_length()
