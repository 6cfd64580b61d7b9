"""The schema of a program's operations: what a quantized network is lowered to, and what oracle and engine execute.

An operation works on tensors of one image. It has a source, which fills register 0 with one row (one token) at a time,
and a body of row instructions that ends in stores. Most sources make each row by itself; a scan and a convolution also
look at other rows of their input.

A map is stored as a tensor with one row for each position, row by row of the map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from visq.integer.instructions import BINARY, UNARY

#: No dimension of a program may pass this; products of two stay inside 64 bits, and a tensor inside memory.
MAX_SIZE = 1 << 20

#: Largest kernel of a convolution over a map: sums of 8-bit products then stay inside 32 bits.
MAX_KERNEL = 15

#: Numbers of a program are float32.
LARGEST = 3.0e38

Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Index = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Register = Annotated[int, Field(ge=0, le=255)]

if TYPE_CHECKING:
    UnaryName: TypeAlias = str
    BinaryName: TypeAlias = str
else:  # mypy takes no computed Literal
    UnaryName, BinaryName = Literal[UNARY], Literal[BINARY]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Constant(Strict):
    """A stored tensor (a parameter, or a coded weight as its codes decode) after some functions: A is A_log, exp,
    neg."""

    name: str
    functions: tuple[Literal["exp", "neg"], ...] = ()


class TensorDecl(Strict):
    """A buffer of `rows` x `width`: float32, or the codes of `site` as bytes. With `reverse`, the site's token scales
    count from the last row."""

    rows: Size
    width: Size
    site: str | None = None
    reverse: bool = False


# --- Row instructions. Registers are rows of float32; `src`, `a`, `b` were written before, `dst` is new.


class Load(Strict):
    """dst = the row of a tensor (decoded), or its row `row`."""

    op: Literal["load"] = "load"
    dst: Register
    tensor: str
    row: Index | None = None


class Slice(Strict):
    """dst = src[offset : offset + width]."""

    op: Literal["slice"] = "slice"
    dst: Register
    src: Register
    offset: Index
    width: Size


class Unary(Strict):
    op: UnaryName
    dst: Register
    src: Register


class Binary(Strict):
    op: BinaryName
    dst: Register
    a: Register
    b: Register


class WithConstant(Strict):
    """With a vector [width], or a row of a matrix [rows, width]."""

    op: Literal["add_constant", "mul_constant"]
    dst: Register
    src: Register
    constant: Constant


class WithScalar(Strict):
    op: Literal["mul_scalar"] = "mul_scalar"
    dst: Register
    src: Register
    value: float = Field(ge=-LARGEST, le=LARGEST)


class RmsNorm(Strict):
    op: Literal["rms_norm"] = "rms_norm"
    dst: Register
    src: Register
    weight: Constant
    eps: float = Field(gt=0, le=LARGEST)


class LayerNorm(Strict):
    op: Literal["layer_norm"] = "layer_norm"
    dst: Register
    src: Register
    weight: Constant
    bias: Constant
    eps: float = Field(gt=0, le=LARGEST)


class Round(Strict):
    """dst = decode(encode(src)) with a site's quantizer; `reverse`: its token scales count from the last row."""

    op: Literal["round"] = "round"
    dst: Register
    src: Register
    site: str
    reverse: bool = False


class Rotate(Strict):
    """dst = src in the coordinates of the rotation of a site's quantizer; what follows encodes the rotated row."""

    op: Literal["rotate"] = "rotate"
    dst: Register
    src: Register
    site: str


class Store(Strict):
    """Writes src to a tensor: encoded where the tensor holds codes."""

    op: Literal["store"] = "store"
    src: Register
    tensor: str


Instruction = Annotated[
    Load | Slice | Unary | Binary | WithConstant | WithScalar | RmsNorm | LayerNorm | Round | Rotate | Store,
    Field(discriminator="op"),
]


# --- Sources.


class Patches(Strict):
    """Register 0 = a window of the image, or of the square map `input`: [channels * patch * patch] in the order of a
    convolution's weight, zeros outside."""

    kind: Literal["patches"] = "patches"
    patch: Size
    stride: Size
    padding: Index = 0
    input: str | None = None


class Linear(Strict):
    """Register 0 = x W^T + bias."""

    kind: Literal["linear"] = "linear"
    input: str
    weight: str
    bias: str | None = None


class Conv1d(Strict):
    """Register 0 = the causal depthwise convolution over rows, from the last row to the first where `reverse`."""

    kind: Literal["conv1d"] = "conv1d"
    input: str
    weight: str
    bias: str | None = None
    reverse: bool = False


class Conv2d(Strict):
    """Register 0 = the depthwise convolution over a square map, kernel x kernel with stride 1; zeros outside."""

    kind: Literal["conv2d"] = "conv2d"
    input: str
    weight: str
    bias: str | None = None
    kernel: Annotated[int, Field(ge=1, le=MAX_KERNEL)]
    padding: Index = 0


class Transpose(Strict):
    """Register 0 of row w * height + h = row h * width + w of `input`, a map [height, width]."""

    kind: Literal["transpose"] = "transpose"
    input: str
    height: Size
    width: Size


class Mean(Strict):
    """Register 0 of the only row = the mean of all rows of `input`."""

    kind: Literal["mean"] = "mean"
    input: str


class Scan(Strict):
    """Register 0 = y of the selective scan. `abar`, `bbar`, `h` name the sites that are quantized."""

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
    """Register 0 = rows of the parts one after the other: (tensor, first row, rows), or a constant of one row."""

    kind: Literal["concat"] = "concat"
    parts: tuple[tuple[str, Index, Size] | Constant, ...]


class Rows(Strict):
    """Register 0 holds nothing; the body loads."""

    kind: Literal["rows"] = "rows"


Source = Annotated[
    Patches | Linear | Conv1d | Conv2d | Transpose | Mean | Scan | Concat | Rows, Field(discriminator="kind")
]


class Operation(Strict):
    """`name` is where in the network it comes from."""

    name: str
    rows: Size
    width: Annotated[int, Field(ge=0, le=MAX_SIZE)]
    source: Source
    body: tuple[Instruction, ...]


def inputs(source: Source) -> tuple[str, ...]:
    """Returns the names of the tensors a source reads."""
    return _INPUTS[type(source)](source)


#: How the names are found, by the type of the source.
_INPUTS: dict[type, Callable[[Any], tuple[str, ...]]] = {
    **dict.fromkeys((Linear, Conv1d, Conv2d, Transpose, Mean), lambda source: (source.input,)),
    Patches: lambda source: () if source.input is None else (source.input,),
    Scan: lambda source: (source.u, source.delta, source.B, source.C),
    Concat: lambda source: tuple(part[0] for part in source.parts if isinstance(part, tuple)),
    Rows: lambda source: (),
}
