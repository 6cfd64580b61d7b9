"""Defines the values that a traced network's nodes become, before the builder places them in operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from visq.errors import VisqError
from visq.integer.operations import Constant


class LoweringError(VisqError):
    """An error for a network or recipe that the engine has no form for; the message names the part."""


@dataclass(eq=False)
class Value:
    """A sequence [rows, width] of one image.

    Attributes:
        kind: `source` (register 0 of an operation), `slice`, `unary`, `binary`, `append`, `turn`, `constant`,
            `values`, `scalar`, `rms_norm`, `layer_norm`, `round` or `select`.
        operands: the values that it is computed from.
        parameters: the row instruction's parameters; for a `source`, its operation.
        reverse: whether the sequence runs from the last row to the first.
        length: rows of a sequence where there are several, one after the other; 0 where all rows are one. By default
            that of the first operand.
        users: number of values that read it.
    """

    kind: str
    rows: int
    width: int
    operands: tuple[Value, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    reverse: bool = False
    length: int | None = None
    users: int = 0

    @property
    def rotated(self) -> bool:
        """Returns whether it is rounded in rotated coordinates; a linear rotated alike reads it."""
        return self.kind == "round" and bool(self.parameters["rotated"])

    def __post_init__(self) -> None:
        if self.length is None:
            self.length = self.operands[0].length if self.operands else 0
        for operand in self.operands:
            operand.users += 1


@dataclass(frozen=True)
class Parameter:
    """A parameter of the network, or a function of one."""

    constant: Constant
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Map:
    """A map [height, width, channels] of one image; `value` is the sequence of its positions, row by row."""

    value: Value
    height: int
    width: int


@dataclass(frozen=True)
class Tokens:
    """Rows first to first + count - 1 of a sequence, for a concatenation."""

    value: Value
    first: int
    count: int


@dataclass(frozen=True)
class Planes:
    """A map with its channels first, as a network returns an image."""

    map: Map


class Image:
    """The image that the network reads."""


class Zeros:
    """A sequence of zeros, which an addition drops."""


def has_map(arguments: Any) -> bool:
    """Returns whether the arguments, or lists and tuples in them, hold a map."""
    return isinstance(arguments, Map) or (isinstance(arguments, tuple | list) and any(map(has_map, arguments)))
