"""Defines the operations of a program: lowering writes them, and the oracle and the engine execute them.

An operation works on tensors of one image. It has a source, which fills register 0 with one row (one token) at a time,
and a body of row instructions that ends in stores. Most sources make each row by itself; a scan and a convolution also
read other rows of their input.

A map [height, width] is a tensor with one row for each position, in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

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
    """A stored tensor (a parameter or a decoded weight) after `functions`, applied in order: A is A_log, exp, neg."""

    name: str
    functions: tuple[Literal["exp", "neg"], ...] = ()


class TensorDecl(Strict):
    """A tensor [rows, width]: float32, or the codes of `site` as bytes.

    With `reverse`, the site's token scales count from the last row. `height` is that of a map which is not square.
    """

    rows: Size
    width: Size
    height: Size | None = None
    site: str | None = None
    reverse: bool = False


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
    """Computes dst = decode(encode(src)) by a site's quantizer; `reverse` counts its token scales from the last row."""

    op: Literal["round"] = "round"
    dst: Register
    src: Register
    site: str
    reverse: bool = False


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


# --- Sources.


class Patches(Strict):
    """Fills register 0 with a window [channels * patch * patch] of the image, or of the map `input`.

    Elements have the order of a convolution's weight; those outside the image are zero.
    """

    kind: Literal["patches"] = "patches"
    patch: Size
    stride: Size
    padding: Index = 0
    input: str | None = None


class Linear(Strict):
    """Fills register 0 with x W^T + bias."""

    kind: Literal["linear"] = "linear"
    input: str
    weight: str
    bias: str | None = None


class Conv1d(Strict):
    """Fills register 0 with the depthwise convolution over rows, from the last to the first where `reverse`.

    It is causal but for the `ahead` rows after its own that a row also reads. With `length`, the rows are sequences of
    so many rows, one after the other, and a row reads its own sequence only.
    """

    kind: Literal["conv1d"] = "conv1d"
    input: str
    weight: str
    bias: str | None = None
    reverse: bool = False
    ahead: Size | None = None
    length: Size | None = None


class Conv2d(Strict):
    """Fills register 0 with the depthwise convolution [kernel, kernel] over a map, stride 1, zeros outside."""

    kind: Literal["conv2d"] = "conv2d"
    input: str
    weight: str
    bias: str | None = None
    kernel: Annotated[int, Field(ge=1, le=MAX_KERNEL)]
    padding: Index = 0


class DenseConv2d(Strict):
    """Fills register 0 with the convolution of a map that mixes all channels; zeros lie outside.

    `kernel`, `stride` and `padding` are (along the height, along the width).
    """

    kind: Literal["dense_conv2d"] = "dense_conv2d"
    input: str
    weight: str
    bias: str | None = None
    kernel: tuple[Size, Size]
    stride: tuple[Size, Size] = (1, 1)
    padding: tuple[Index, Index] = (0, 0)


class PixelShuffle(Strict):
    """Fills register 0 with a map `scale` times as high and wide as `input`, of scale^2 times fewer channels.

    Channel c of position (y, x) is channel c scale^2 + (y % scale) scale + x % scale of (y / scale, x / scale).
    """

    kind: Literal["pixel_shuffle"] = "pixel_shuffle"
    input: str
    scale: Annotated[int, Field(ge=1, le=64)]


class Transpose(Strict):
    """Fills register 0 of row w * height + h with row h * width + w of `input`, a map [height, width]."""

    kind: Literal["transpose"] = "transpose"
    input: str
    height: Size
    width: Size


class EnterWindows(Strict):
    """Fills register 0 with the rows of a square map, window by window; zeros where a window leaves the map.

    The windows of `window` x `window` positions cover the map [side, side] row by row, and each goes row by row.
    """

    kind: Literal["enter_windows"] = "enter_windows"
    input: str
    side: Size
    window: Size


class LeaveWindows(Strict):
    """Undoes `EnterWindows`: fills register 0 with the rows of the map [side, side]."""

    kind: Literal["leave_windows"] = "leave_windows"
    input: str
    side: Size
    window: Size


class Attention(Strict):
    """Fills register 0 with self-attention (`visq.integer.attention`) of sequences of `length` rows.

    `scores` and `probs` name the sites of quantized tensors [length, heads * length].
    """

    kind: Literal["attention"] = "attention"
    q: str
    k: str
    v: str
    heads: Size
    length: Size
    scores: str | None = None
    probs: str | None = None


class Mean(Strict):
    """Fills register 0 of the only row with the mean of all rows of `input`."""

    kind: Literal["mean"] = "mean"
    input: str


class Scan(Strict):
    """Fills register 0 with y of the selective scan; `abar`, `bbar` and `h` name the sites of quantized tensors."""

    kind: Literal["scan"] = "scan"
    u: str
    delta: str
    A: Constant
    B: str
    C: str
    abar: str | None = None
    bbar: str | None = None
    h: str | None = None
    reverse: bool = False


class Concat(Strict):
    """Fills register 0 with the rows of the parts in turn: (tensor, first row, rows), or a constant of one row."""

    kind: Literal["concat"] = "concat"
    parts: tuple[tuple[str, Index, Size] | Constant, ...]


class Rows(Strict):
    """Fills nothing: the body loads its rows."""

    kind: Literal["rows"] = "rows"


Source = Annotated[
    Patches
    | Linear
    | Conv1d
    | Conv2d
    | DenseConv2d
    | PixelShuffle
    | Transpose
    | EnterWindows
    | LeaveWindows
    | Attention
    | Mean
    | Scan
    | Concat
    | Rows,
    Field(discriminator="kind"),
]


class Operation(Strict):
    """A source and a body, run for each of `rows` rows; `name` says where in the network the operation comes from."""

    name: str
    rows: Size
    width: Annotated[int, Field(ge=0, le=MAX_SIZE)]
    source: Source
    body: tuple[Instruction, ...]


def inputs(source: Source) -> tuple[str, ...]:
    """Returns the names of the tensors a source reads."""
    return _INPUTS[type(source)](source)


#: Finds the names of a source's input tensors, by the type of the source.
_INPUTS: dict[type, Callable[[Any], tuple[str, ...]]] = {
    **dict.fromkeys(
        (Linear, Conv1d, Conv2d, DenseConv2d, PixelShuffle, Transpose, EnterWindows, LeaveWindows, Mean),
        lambda source: (source.input,),
    ),
    Attention: lambda source: (source.q, source.k, source.v),
    Patches: lambda source: () if source.input is None else (source.input,),
    Scan: lambda source: (source.u, source.delta, source.B, source.C),
    Concat: lambda source: tuple(part[0] for part in source.parts if isinstance(part, tuple)),
    Rows: lambda source: (),
}
