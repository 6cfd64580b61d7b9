"""Defines what the parts of a program are made of: sizes, constants, tensors, and the row instructions of a body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from visq.integer.instructions import BINARY, UNARY

#: Largest dimension of a program: products of two then stay inside 64 bits, and a tensor inside memory.
MAX_SIZE = 1 << 20

#: Largest kernel of a convolution over a map: sums of 8-bit products then stay inside 32 bits.
MAX_KERNEL = 15

#: Largest magnitude of a program's numbers, which are float32.
LARGEST = 3.0e38

Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Index = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Register = Annotated[int, Field(ge=0, le=255)]

if TYPE_CHECKING:
    UnaryName: TypeAlias = str
    BinaryName: TypeAlias = str
else:  # mypy does not accept a computed Literal
    UnaryName, BinaryName = Literal[UNARY], Literal[BINARY]


class Strict(BaseModel):
    """A frozen model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Constant(Strict):
    """A stored tensor (a parameter or a decoded weight) after `functions`, applied in order: A is A_log, exp, neg.

    With `grid` it is a table of positions [1, side * side, C], resampled bilinearly to a map of that height and width
    (`visq.integer.resampling.bilinear`), [1, height * width, C].
    """

    name: str
    functions: tuple[Literal["exp", "neg"], ...] = ()
    grid: tuple[Size, Size] | None = None


class TensorDecl(Strict):
    """A tensor [rows, width]: float32, or the codes of `site` as bytes.

    With `reverse`, the site's token scales count from the last row. `height` is that of a map which is not square.
    With `length`, the rows are sequences of so many rows, one after the other, and the token scales are those of each.
    """

    rows: Size
    width: Size
    height: Size | None = None
    site: str | None = None
    reverse: bool = False
    length: Size | None = None


# --- Row instructions. A register holds a row of float32. `src`, `a`, `b` are already written, and `dst` is new.


class Load(Strict):
    """Loads the operation's row of a tensor, or always row `row`, decoded."""

    op: Literal["load"] = "load"
    dst: Register
    tensor: str
    row: Index | None = None


class Slice(Strict):
    """Computes dst = src[offset : offset + width]."""

    op: Literal["slice"] = "slice"
    dst: Register
    src: Register
    offset: Index
    width: Size


class Unary(Strict):
    """Computes dst = op(src), element by element."""

    op: UnaryName
    dst: Register
    src: Register


class Binary(Strict):
    """Computes dst = op(a, b), element by element."""

    op: BinaryName
    dst: Register
    a: Register
    b: Register


class Append(Strict):
    """Computes dst = the channels of a, then those of b."""

    op: Literal["append"] = "append"
    dst: Register
    a: Register
    b: Register


class Turn(Strict):
    """Turns each pair of neighbouring channels by 90 degrees: dst = (-b, a) of (a, b)."""

    op: Literal["turn"] = "turn"
    dst: Register
    src: Register


class WithConstant(Strict):
    """Adds src and a constant, or multiplies them: a vector [width], or a matrix [rows, width] row by row."""

    op: Literal["add_constant", "mul_constant"]
    dst: Register
    src: Register
    constant: Constant


class AddValues(Strict):
    """Adds one number to each channel of src. The numbers belong to the network's code, not to its parameters."""

    op: Literal["add_values"] = "add_values"
    dst: Register
    src: Register
    values: tuple[Annotated[float, Field(ge=-LARGEST, le=LARGEST)], ...]


class WithScalar(Strict):
    """Computes dst = src * value."""

    op: Literal["mul_scalar"] = "mul_scalar"
    dst: Register
    src: Register
    value: float = Field(ge=-LARGEST, le=LARGEST)


class RmsNorm(Strict):
    """Computes dst = `arithmetic.rms_norm` of src."""

    op: Literal["rms_norm"] = "rms_norm"
    dst: Register
    src: Register
    weight: Constant
    eps: float = Field(gt=0, le=LARGEST)


class LayerNorm(Strict):
    """Computes dst = `arithmetic.layer_norm` of src."""

    op: Literal["layer_norm"] = "layer_norm"
    dst: Register
    src: Register
    weight: Constant
    bias: Constant
    eps: float = Field(gt=0, le=LARGEST)


class Round(Strict):
    """Computes dst = decode(encode(src)) by a site's quantizer; `reverse` and `length` as in a tensor's declaration."""

    op: Literal["round"] = "round"
    dst: Register
    src: Register
    site: str
    reverse: bool = False
    length: Size | None = None


class Rotate(Strict):
    """Computes dst = src rotated by the rotation of a site's quantizer. A later instruction encodes the rotated row."""

    op: Literal["rotate"] = "rotate"
    dst: Register
    src: Register
    site: str


class Store(Strict):
    """Writes src to a tensor, encoded where the tensor holds codes."""

    op: Literal["store"] = "store"
    src: Register
    tensor: str


Instruction = Annotated[
    Load
    | Slice
    | Unary
    | Binary
    | Append
    | Turn
    | WithConstant
    | AddValues
    | WithScalar
    | RmsNorm
    | LayerNorm
    | Round
    | Rotate
    | Store,
    Field(discriminator="op"),
]
