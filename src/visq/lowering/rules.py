"""Lowers the functions and methods between layers: one rule serves the function and the method of a name."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch

from visq.integer import operations as ir
from visq.lowering.context import Lowering
from visq.lowering.values import Image, LoweringError, Map, Parameter, Planes, Tokens, Value, Zeros, has_map

FUNCTIONS: dict[Callable[..., Any], str] = {
    operator.add: "add",
    operator.mul: "mul",
    operator.truediv: "truediv",
    operator.neg: "neg",
    operator.getitem: "getitem",
    torch.exp: "exp",
    torch.cat: "cat",
    torch.zeros_like: "zeros_like",
    getattr: "getattr",
}
RULES: dict[str, Callable[..., Any]] = {}
#: Names of the rules that take a map.
OF_MAPS = ("add", "cat", "flatten", "getattr", "permute", "transpose", "zeros_like")


def rule(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a rule under its function's name."""
    RULES[function.__name__] = function
    return function


@rule
def add(lowering: Lowering, a: Any, b: Any) -> Any:
    if isinstance(a, Map) and isinstance(b, Map):
        if (a.height, a.width) != (b.height, b.width):
            raise LoweringError("add of maps that do not fit")
        return Map(lowering.binary("add", a.value, b.value), a.height, a.width)
    if isinstance(a, Map) or isinstance(b, Map):
        raise LoweringError("add of a map and something else")
    return lowering.binary("add", a, b)


@rule
def mul(lowering: Lowering, a: Any, b: Any) -> Any:
    return lowering.binary("mul", a, b)


@rule
def truediv(lowering: Lowering, a: Value, b: float) -> Any:
    """Multiplies by 1 / b. Raises LoweringError unless `(1 / b) * b == 1`."""
    if not isinstance(b, int | float) or b == 0 or (1 / b) * b != 1:
        raise LoweringError("a division by something else than a number with an exact reciprocal")
    return lowering.binary("mul", a, 1 / b)


@rule
def neg(lowering: Lowering, x: Any) -> Any:
    return _function("neg", lowering, x)


@rule
def exp(lowering: Lowering, x: Any) -> Any:
    return _function("exp", lowering, x)


def _function(name: str, lowering: Lowering, x: Any) -> Any:
    if isinstance(x, Parameter):
        constant = x.constant.model_copy(update={"functions": (*x.constant.functions, name)})
        return Parameter(constant, x.shape)
    if name != "neg":
        raise LoweringError(f"{name} of an activation")
    return lowering.unary(name, x)


@rule
def double(lowering: Lowering, x: Parameter) -> Parameter:
    """Returns the parameter unchanged: `Bundle.constant` computes its functions in float64 anyway."""
    if not isinstance(x, Parameter):
        raise LoweringError("float64 of an activation")
    return x


@rule
def to(lowering: Lowering, x: Parameter, like: Parameter) -> Parameter:
    """Returns the parameter unchanged: the conversion undoes `double`."""
    if not isinstance(x, Parameter) or not isinstance(like, Parameter):
        raise LoweringError("a conversion of an activation")
    return x


@rule
def zeros_like(lowering: Lowering, x: Value | Map) -> Zeros:
    return Zeros()


@rule
def flip(lowering: Lowering, x: Value, dim: int) -> Value:
    """Returns a view of the same rows in reverse order."""
    if dim != 1:
        raise LoweringError(f"flip of dimension {dim}")
    return Value("slice", x.rows, x.width, (x,), {"offset": 0}, not x.reverse)


@rule
def chunk(lowering: Lowering, x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    if x.width % chunks:
        raise LoweringError(f"{x.width} channels in {chunks} parts")
    return split(lowering, x, [x.width // chunks] * chunks, dim)


@rule
def split(lowering: Lowering, x: Value, sizes: list[int], dim: int = 0) -> tuple[Value, ...]:
    if dim not in (-1, 2) or sum(sizes) != x.width:
        raise LoweringError("a split of something else than the channels")
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(
        Value("slice", x.rows, size, (x,), {"offset": offset}, x.reverse)
        for offset, size in zip(offsets, sizes, strict=True)
    )


@rule
def getitem(lowering: Lowering, x: Any, index: Any) -> Any:
    """Takes an item of a tuple, one row of a sequence (`x[:, i]`) or a run of its rows (`x[:, i:j]`)."""
    if isinstance(x, tuple):
        return x[index]
    everything = slice(None)
    if isinstance(x, Value) and isinstance(index, tuple) and len(index) == 2 and index[0] == everything:
        if isinstance(index[1], slice) and index[1].step in (None, 1):
            first, stop, _ = index[1].indices(x.rows)
            return Tokens(x, first, stop - first)
        if isinstance(index[1], int):
            row = index[1] % x.rows
            return Value("select", 1, x.width, (x,), {"row": x.rows - 1 - row if x.reverse else row})
    raise LoweringError(f"indexing by {index}")


@rule
def permute(lowering: Lowering, x: Any, *dims: int) -> Image | Planes:
    """Returns the image unchanged, since a program reads it with channels last, or a map with its channels first."""
    if isinstance(x, Map) and dims == (0, 3, 1, 2):
        return Planes(x)
    if not isinstance(x, Image) or dims != (0, 2, 3, 1):
        raise LoweringError(f"permute to {dims} of something else than the image")
    return x


@rule
def unflatten(lowering: Lowering, x: Value, dim: int, sizes: tuple[int, ...]) -> Map:
    """Returns a sequence [height * width, C] as a map of `sizes` (height, width)."""
    if not isinstance(x, Value) or x.reverse or dim != 1 or len(sizes) != 2 or sizes[0] * sizes[1] != x.rows:
        raise LoweringError(f"unflatten of dimension {dim} to {sizes}: tokens in order make a map")
    return Map(x, *sizes)


@rule
def flatten(lowering: Lowering, x: Map | Zeros, start_dim: int = 0, end_dim: int = -1) -> Value | Zeros:
    """Returns the positions of a map as a sequence, row by row."""
    if isinstance(x, Zeros):
        return x
    if not isinstance(x, Map) or (start_dim, end_dim) != (1, 2):
        raise LoweringError("flatten of something else than a map")
    return x.value


@rule
def transpose(lowering: Lowering, x: Map, dim0: int, dim1: int) -> Map:
    """Swaps height and width of a map, which reorders its positions."""
    if not isinstance(x, Map) or {dim0, dim1} != {1, 2}:
        raise LoweringError("transpose of something else than a map")
    source = ir.Transpose(input=lowering.builder.tensor(x.value), height=x.height, width=x.width)
    rows = lowering.builder.operation("transpose", source, x.value.rows, x.value.width)
    return Map(rows, x.width, x.height)


def shape(lowering: Lowering, x: Value | Map, attribute: str) -> tuple[int | None, ...]:
    """Returns (None, rows, width), or (None, height, width, channels) for a map.

    The first size is None because a program does not know the number of images.
    """
    if isinstance(x, Map) and attribute == "shape":
        return None, x.height, x.width, x.value.width
    if not isinstance(x, Value) or attribute != "shape":
        raise LoweringError(f"attribute {attribute}")
    return None, x.rows, x.width


RULES["getattr"] = shape


@rule
def cat(lowering: Lowering, parts: list[Any], dim: int = 0) -> Value | Map:
    """Concatenates rows: parameters of one row, sequences and runs of their rows; or channels of sequences or maps.

    Raises:
        LoweringError: another dimension, or a flipped sequence.
    """
    if dim == -1 and all(isinstance(part, Value) for part in parts):
        return functools.reduce(lowering.append, parts)
    if dim == -1 and all(isinstance(part, Map) for part in parts):
        if len({(part.height, part.width) for part in parts}) > 1:
            raise LoweringError("channels beside those of a map of another size")
        value = functools.reduce(lowering.append, [part.value for part in parts])
        return Map(value, parts[0].height, parts[0].width)
    if has_map(parts):
        raise LoweringError(f"concatenation of maps along dimension {dim}")
    if dim != 1:
        raise LoweringError(f"concatenation along dimension {dim}")
    placed: list[Any] = []
    rows, width = 0, 0
    for part in parts:
        if isinstance(part, Parameter):
            placed.append(part.constant)
            rows += 1
            continue
        tokens = part if isinstance(part, Tokens) else Tokens(part, 0, part.rows)
        if tokens.value.reverse:
            raise LoweringError("concatenation of a flipped sequence")
        rows, width = rows + tokens.count, tokens.value.width
        if tokens.count:
            placed.append((lowering.builder.tensor(tokens.value), tokens.first, tokens.count))
    return lowering.builder.operation("concat", ir.Concat(parts=tuple(placed)), rows, width)


@rule
def expand(lowering: Lowering, x: Parameter, *sizes: Any) -> Parameter:
    """Returns the parameter unchanged: it is expanded over a batch, and a program sees one image."""
    if not isinstance(x, Parameter) or any(size != -1 for size in sizes[1:]):
        raise LoweringError("expand of something else than a parameter over images")
    return x
