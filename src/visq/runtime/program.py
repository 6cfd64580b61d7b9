"""The integer program: what a quantized network is lowered to, and what oracle and kernels execute.

A program is a list of operations over tensors of one image. Each operation has a source, which fills register 0 with
one row (one token) at a time, and a body of row instructions that ends in stores. Rows of most operations are
independent of each other; a scan's and a convolution's source look at other rows of their input.

A map is a tensor of one row for each of its positions, row by row of the map.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: No dimension of a program may pass this; products of two stay inside 64 bits, and a tensor inside memory.
MAX_SIZE = 1 << 20

#: Largest kernel of a convolution over a map: sums of 8-bit products then stay inside 32 bits.
MAX_KERNEL = 15

Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Index = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Register = Annotated[int, Field(ge=0, le=255)]


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
    op: Literal["silu", "softplus", "gelu", "neg"]
    dst: Register
    src: Register


class Binary(Strict):
    op: Literal["add", "mul"]
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
    value: float


class RmsNorm(Strict):
    op: Literal["rms_norm"] = "rms_norm"
    dst: Register
    src: Register
    weight: Constant
    eps: float = Field(gt=0)


class LayerNorm(Strict):
    op: Literal["layer_norm"] = "layer_norm"
    dst: Register
    src: Register
    weight: Constant
    bias: Constant
    eps: float = Field(gt=0)


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


class Program(Strict):
    """Image [channels, size, size] float32, normalized -> row 0 of `output`."""

    channels: Size
    size: Size
    output: str
    tensors: dict[str, TensorDecl]
    operations: tuple[Operation, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values without what is None, false, empty or no padding; `Program.model_validate` reads them."""
        values: dict[str, Any] = _pruned(self.model_dump(mode="json"))
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Program:
        """Every register and tensor is written before it is read, and every shape fits."""
        written: set[str] = set()
        for operation in self.operations:
            _check_operation(self, operation, written)
        if self.output not in written:
            raise ValueError(f"output {self.output} is never written")
        return self


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _pruned(item) for key, item in value.items()}
        return {
            key: item
            for key, item in kept.items()
            if item is not None and item is not False and not (key in ("functions", "padding") and not item)
        }
    return [_pruned(item) for item in value] if isinstance(value, list) else value


def inputs(source: Source) -> tuple[str, ...]:
    """Names of the tensors a source reads."""
    if isinstance(source, Linear | Conv1d | Conv2d | Transpose | Mean):
        return (source.input,)
    if isinstance(source, Patches):
        return () if source.input is None else (source.input,)
    if isinstance(source, Scan):
        return source.u, source.delta, source.B, source.C
    if isinstance(source, Concat):
        return tuple(part[0] for part in source.parts if isinstance(part, tuple))
    return ()


def _check_operation(program: Program, operation: Operation, written: set[str]) -> None:
    def need(condition: bool, what: str) -> None:
        if not condition:
            raise ValueError(f"operation {operation.name}: {what}")

    def declared(name: str) -> TensorDecl:
        need(name in program.tensors, f"tensor {name} is not declared")
        return program.tensors[name]

    def square(name: str) -> int:
        """The side of a map."""
        side = math.isqrt(declared(name).rows)
        need(side * side == declared(name).rows, f"{name} is no square map")
        return side

    def windows(side: int, kernel: int, stride: int, padding: int) -> None:
        """Rows are the windows of a map with so many on a side; each meets the map."""
        need(padding < kernel, "windows that lie outside")
        need(kernel <= side + 2 * padding, "the patch is larger than the image")
        count = (side + 2 * padding - kernel) // stride + 1
        need(operation.rows == count * count, "rows are not the number of patches")

    source = operation.source
    for name in inputs(source):
        declared(name)
        need(name in written, f"tensor {name} is read before it is written")
    if isinstance(source, Patches):
        side, channels = program.size, program.channels
        if source.input is not None:
            side, channels = square(source.input), declared(source.input).width
        windows(side, source.patch, source.stride, source.padding)
        need(operation.width == channels * source.patch**2, "width is not that of a patch")
    elif isinstance(source, Linear):
        need(declared(source.input).rows == operation.rows, "rows are not those of the input")
    elif isinstance(source, Conv1d):
        shape = declared(source.input)
        need((shape.rows, shape.width) == (operation.rows, operation.width), "shape is not that of the input")
    elif isinstance(source, Conv2d):
        windows(square(source.input), source.kernel, 1, source.padding)
        need(declared(source.input).width == operation.width, "width is not that of the input")
    elif isinstance(source, Transpose):
        shape = declared(source.input)
        need((shape.rows, shape.width) == (operation.rows, operation.width), "shape is not that of the input")
        need(source.height * source.width == shape.rows, "the map has another number of rows")
    elif isinstance(source, Mean):
        need((operation.rows, operation.width) == (1, declared(source.input).width), "a mean is one row of the input")
    elif isinstance(source, Scan):
        for name in (source.u, source.delta):
            shape = declared(name)
            need((shape.rows, shape.width) == (operation.rows, operation.width), f"{name} has another shape")
        B, C = declared(source.B), declared(source.C)
        need(B.rows == C.rows == operation.rows and B.width == C.width, "B and C do not fit")
    elif isinstance(source, Concat):
        count = 0
        for part in source.parts:
            if isinstance(part, Constant):
                count += 1
                continue
            shape = declared(part[0])
            need(part[1] + part[2] <= shape.rows and shape.width == operation.width, f"{part[0]} does not fit")
            count += part[2]
        need(count == operation.rows, "rows are not those of the parts")
    registers: dict[int, int] = {} if isinstance(source, Rows) else {0: operation.width}

    def width(register: int) -> int:
        need(register in registers, f"register {register} is read before it is written")
        return registers[register]

    for step in operation.body:
        if isinstance(step, Store):
            shape = declared(step.tensor)
            need((shape.rows, shape.width) == (operation.rows, width(step.src)), f"{step.tensor} has another shape")
            need(step.tensor not in written, f"{step.tensor} is written twice")
            written.add(step.tensor)
            continue
        if isinstance(step, Load):
            shape = declared(step.tensor)
            need(step.tensor in written, f"tensor {step.tensor} is read before it is written")
            need(
                shape.rows == operation.rows if step.row is None else step.row < shape.rows,
                f"{step.tensor}: no such row",
            )
            size = shape.width
        elif isinstance(step, Slice):
            need(step.offset + step.width <= width(step.src), "a slice beyond its register")
            size = step.width
        elif isinstance(step, Binary):
            size = width(step.a)
            need(width(step.b) == size, "registers of different widths")
        else:
            size = width(step.src)
        need(step.dst not in registers, f"register {step.dst} is written twice")
        registers[step.dst] = size
