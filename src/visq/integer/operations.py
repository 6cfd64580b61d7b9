"""Defines the operations of a program: lowering writes them, and the oracle and the engine execute them.

An operation works on tensors of one image. It has a source, which fills register 0 with one row (one token) at a time,
and a body of row instructions that ends in stores. Most sources make each row by itself; a scan and a convolution also
read other rows of their input.

A map [height, width] is a tensor with one row for each position, in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from visq.integer.row_instructions import (
    LARGEST,
    MAX_KERNEL,
    MAX_SIZE,
    AddValues,
    Append,
    Binary,
    Constant,
    Index,
    Instruction,
    LayerNorm,
    Load,
    Register,
    RmsNorm,
    Rotate,
    Round,
    Size,
    Slice,
    Store,
    Strict,
    TensorDecl,
    Turn,
    Unary,
    WithConstant,
    WithScalar,
)

__all__ = [
    "LARGEST",
    "MAX_KERNEL",
    "MAX_SIZE",
    "AddValues",
    "Append",
    "Binary",
    "Constant",
    "Index",
    "Instruction",
    "LayerNorm",
    "Load",
    "Register",
    "RmsNorm",
    "Rotate",
    "Round",
    "Size",
    "Slice",
    "Store",
    "Strict",
    "TensorDecl",
    "Turn",
    "Unary",
    "WithConstant",
    "WithScalar",
    "Patches",
    "Linear",
    "Conv1d",
    "Conv2d",
    "DenseConv2d",
    "PixelShuffle",
    "Bilinear",
    "AveragePool",
    "Transpose",
    "EnterWindows",
    "LeaveWindows",
    "Sample",
    "MergeSamples",
    "Attention",
    "Mean",
    "Scan",
    "Concat",
    "Rows",
    "Operation",
    "Source",
    "inputs",
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


class Bilinear(Strict):
    """Fills register 0 with a map resampled to the height and width of the map `like` (`visq.integer.resampling`)."""

    kind: Literal["bilinear"] = "bilinear"
    input: str
    like: str


class AveragePool(Strict):
    """Fills register 0 with the means of height x width parts of a map (`visq.integer.resampling`)."""

    kind: Literal["average_pool"] = "average_pool"
    input: str
    height: Size
    width: Size


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


class Sample(Strict):
    """Fills register 0 with every second row and column of `input`, a map [height, width], from (row, column) on.

    A map with an odd side goes on with zeros. With `by_columns`, the sample goes column by column.
    """

    kind: Literal["sample"] = "sample"
    input: str
    height: Size
    width: Size
    row: Annotated[int, Field(ge=0, le=1)]
    column: Annotated[int, Field(ge=0, le=1)]
    by_columns: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Returns the sample's rows and columns, or its columns and rows where it goes by columns."""
        rows, columns = half(self.height), half(self.width)
        return (columns, rows) if self.by_columns else (rows, columns)


class MergeSamples(Strict):
    """Fills register 0 with the rows of the map [height, width] whose four samples are the inputs.

    The sample from (row, column) on is input row + 2 column. Those of odd rows go column by column.
    """

    kind: Literal["merge_samples"] = "merge_samples"
    inputs: tuple[str, str, str, str]
    height: Size
    width: Size


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
    """Fills register 0 with y of the selective scan; `abar`, `bbar` and `h` name the sites of quantized tensors.

    With `length`, the rows are sequences of so many rows, one after the other, and each begins without a state.
    """

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
    length: Size | None = None


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
    | Bilinear
    | AveragePool
    | Transpose
    | EnterWindows
    | LeaveWindows
    | Sample
    | MergeSamples
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


def half(side: int) -> int:
    """Returns how many positions a sample takes along a side."""
    return -(-side // 2)


def inputs(source: Source) -> tuple[str, ...]:
    """Returns the names of the tensors a source reads."""
    return _INPUTS[type(source)](source)


#: Finds the names of a source's input tensors, by the type of the source.
_INPUTS: dict[type, Callable[[Any], tuple[str, ...]]] = {
    **dict.fromkeys(
        (
            Linear,
            Conv1d,
            Conv2d,
            DenseConv2d,
            PixelShuffle,
            AveragePool,
            Transpose,
            EnterWindows,
            LeaveWindows,
            Sample,
            Mean,
        ),
        lambda source: (source.input,),
    ),
    Bilinear: lambda source: (source.input, source.like),
    MergeSamples: lambda source: source.inputs,
    Attention: lambda source: (source.q, source.k, source.v),
    Patches: lambda source: () if source.input is None else (source.input,),
    Scan: lambda source: (source.u, source.delta, source.B, source.C),
    Concat: lambda source: tuple(part[0] for part in source.parts if isinstance(part, tuple)),
    Rows: lambda source: (),
}
