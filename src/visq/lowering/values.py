"""What the nodes of a traced network become: a graph of values, before it is known where each is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from visq.errors import VisqError
from visq.integer.operations import Constant


class LoweringError(VisqError):
    """The network or recipe has no form the engine runs; the message says what."""


@dataclass(eq=False)
class Value:
    """A sequence [rows, width] of one image.

    Attributes:
        kind: `source` (register 0 of an operation), `slice`, `unary`, `binary`, `constant`, `scalar`, `rms_norm`,
            `layer_norm`, `round` or `select`.
        operands: the values it is made of.
        parameters: of the row instruction; a `source`'s operation.
        reverse: the sequence runs against the rows, from the last to the first.
        users: how many values and operations read it.
    """

    kind: str
    rows: int
    width: int
    operands: tuple[Value, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    reverse: bool = False
    users: int = 0

    @property
    def rotated(self) -> bool:
        """Rounded in rotated coordinates: only a linear, whose weight is rotated alike, can read its codes."""
        return self.kind == "round" and bool(self.parameters["rotated"])

    def __post_init__(self) -> None:
        for operand in self.operands:
            operand.users += 1


@dataclass(frozen=True)
class Parameter:
    """A parameter of the network, or a function of one."""

    constant: Constant
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Map:
    """A map [height, width, channels] of one image: the sequence of its positions, row by row."""

    value: Value
    height: int
    width: int


@dataclass(frozen=True)
class Tokens:
    """Rows first .. first + count of a sequence, before they are put together with others."""

    value: Value
    first: int
    count: int


class Image:
    """The network's input."""


class Zeros:
    """A sequence of zeros: adding it changes nothing."""


def has_map(arguments: Any) -> bool:
    """Returns whether a map is among arguments."""
    return isinstance(arguments, Map) or (isinstance(arguments, tuple | list) and any(map(has_map, arguments)))
