"""Makes a program for images of another size, without the network.

Only the number of positions changes with an image's size: rows of tensors, heights of maps, windows. So a program that
names no position becomes the program that lowering would write for the other size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from pydantic import ValidationError

from visq.errors import VisqError, first_problem
from visq.integer.operations import (
    AveragePool,
    Bilinear,
    Concat,
    Constant,
    Conv1d,
    Conv2d,
    DenseConv2d,
    Linear,
    Load,
    Mean,
    MergeSamples,
    Operation,
    Patches,
    PixelShuffle,
    Rows,
    Sample,
    Scan,
    Source,
    Store,
    TensorDecl,
    Transpose,
    WithConstant,
    inputs,
)
from visq.integer.program import Program

#: Sources whose rows follow from their inputs; any other one is refused.
_RESIZED = (
    Patches,
    Linear,
    Conv1d,
    Conv2d,
    DenseConv2d,
    PixelShuffle,
    Bilinear,
    AveragePool,
    Transpose,
    Sample,
    MergeSamples,
    Mean,
    Scan,
    Rows,
)
#: (height, width) of a map; (rows, 1) of a sequence that is none.
Size = tuple[int, int]


def resized(program: Program, height: int, width: int, shape_of: Callable[[Constant], tuple[int, ...]]) -> Program:
    """Returns the program for images of `height` x `width`.

    Arguments:
        shape_of: returns the shape of a constant.
    Raises:
        VisqError: the program names positions of one size, or does not fit the other.
    """
    if (height, width) == (program.height, program.width):
        return program
    for what in positions(program, shape_of):
        raise VisqError(f"the network is made for images of {_said(program.height, program.width)}: {what}")
    try:
        return _Resizing(program, (height, width)).run()
    except (ValidationError, VisqError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else error
        raise VisqError(f"no program for images of {_said(height, width)}: {problem}") from error


def positions(program: Program, shape_of: Callable[[Constant], tuple[int, ...]]) -> Iterator[str]:
    """Yields what of a program belongs to positions of one image size. Scales of its sites are not looked at."""
    for operation in program.operations:
        if isinstance(operation.source, Concat):
            yield f"{operation.name} joins sequences of given lengths"
        elif not isinstance(operation.source, _RESIZED):
            yield f"{operation.name} ({operation.source.kind}) counts positions of one size"
        for step in operation.body:
            if isinstance(step, Load) and step.row is not None and program.tensors[step.tensor].rows > 1:
                yield f"{operation.name} reads row {step.row}"
            if (
                isinstance(step, WithConstant)
                and step.constant.grid is None
                and math.prod(shape_of(step.constant)[:-1]) > 1
            ):
                yield f"{step.constant.name} has a number for every position"


def _said(height: int, width: int) -> str:
    return f"{height} x {width} pixels"


class _Resizing:
    """Walks over a program's operations once.

    Attributes:
        sizes: the new size of every tensor written so far.
        sampled: the new size of every map that was sampled so far, by its old one.
    """

    def __init__(self, program: Program, image: Size) -> None:
        self.program, self.image = program, image
        self.sizes: dict[str, Size] = {}
        self.sampled: dict[Size, Size] = {}

    def run(self) -> Program:
        """Returns the whole program, validated."""
        program = self.program
        maps = {name for operation in program.operations for name in _maps(operation.source)}
        if program.output_map:
            maps.add(program.output)
        operations = tuple(self._operation(operation) for operation in program.operations)
        tensors = {name: self._tensor(name, decl, name in maps) for name, decl in program.tensors.items()}
        height, width = self.image
        values = {
            **dict(program),
            "size": height if height == width else self.image,
            "tensors": tensors,
            "operations": operations,
        }
        return Program.model_validate(values)

    def _operation(self, operation: Operation) -> Operation:
        height, width = size = self._size(operation)
        source: Any = operation.source
        if isinstance(source, Transpose):  # its result is the transposed map
            source = Transpose(**{**dict(source), "height": width, "width": height})
        elif isinstance(source, Sample | MergeSamples):
            height_before, width_before = self.sampled[source.height, source.width]
            source = type(source)(**{**dict(source), "height": height_before, "width": width_before})
        for step in operation.body:
            if isinstance(step, Store):
                self.sizes[step.tensor] = size
        body = tuple(_with_grid(step, size) for step in operation.body)
        return Operation(**{**dict(operation), "rows": height * width, "source": source, "body": body})

    def _size(self, operation: Operation) -> Size:
        """Returns the size of what an operation computes."""
        source = operation.source
        if isinstance(source, Mean):
            return 1, 1
        if isinstance(source, Patches):
            before = self.image if source.input is None else self.sizes[source.input]
            return _windows(before, (source.patch,) * 2, (source.stride,) * 2, (source.padding,) * 2)
        if isinstance(source, AveragePool):
            return source.height, source.width
        if isinstance(source, Bilinear):
            return self.sizes[source.like]
        if isinstance(source, MergeSamples):
            return self._merged(operation, source)
        own = (step.tensor for step in operation.body if isinstance(step, Load) and step.row is None)
        read = inputs(source) or tuple(own)
        if not read:
            self._refuse(operation)
        height, width = self.sizes[read[0]]
        if isinstance(source, Conv2d):
            return _windows((height, width), (source.kernel,) * 2, (1, 1), (source.padding,) * 2)
        if isinstance(source, DenseConv2d):
            return _windows((height, width), source.kernel, source.stride, source.padding)
        if isinstance(source, PixelShuffle):
            return height * source.scale, width * source.scale
        if isinstance(source, Sample):
            if self.sampled.setdefault((source.height, source.width), (height, width)) != (height, width):
                raise VisqError(f"operation {operation.name} samples one of two maps of {height} x {width}")
            return Sample(**{**dict(source), "height": height, "width": width}).size
        return (width, height) if isinstance(source, Transpose) else (height, width)

    def _merged(self, operation: Operation, source: MergeSamples) -> Size:
        """Returns the size of the map whose samples are merged, which theirs does not tell: it may be odd."""
        if (source.height, source.width) not in self.sampled:
            self._refuse(operation)
        return self.sampled[source.height, source.width]

    def _tensor(self, name: str, decl: TensorDecl, is_map: bool) -> TensorDecl:
        height, width = self.sizes[name]
        declared = height if is_map and height != width else None
        return TensorDecl(**{**dict(decl), "rows": height * width, "height": declared})

    def _refuse(self, operation: Operation) -> NoReturn:
        raise VisqError(f"operation {operation.name} has a number of rows that follows from nothing it reads")


def _with_grid(step: Any, size: Size) -> Any:
    """Returns a row instruction whose table of positions, if it adds one, has the new size."""
    if not isinstance(step, WithConstant) or step.constant.grid is None:
        return step
    return WithConstant(**{**dict(step), "constant": Constant(**{**dict(step.constant), "grid": size})})


def _maps(source: Source) -> tuple[str, ...]:
    """Returns the tensors that a source reads as maps."""
    read_as_maps = Patches | Conv2d | DenseConv2d | PixelShuffle | Bilinear | AveragePool
    return inputs(source) if isinstance(source, read_as_maps) else ()


def _windows(size: Size, kernel: Size, stride: Size, padding: Size) -> Size:
    """Returns how many windows there are along the height and the width."""
    counts = []
    for side, length, step, around in zip(size, kernel, stride, padding, strict=True):
        if length > side + 2 * around:
            raise VisqError(f"a map of {size[0]} x {size[1]} is too small for a kernel of {kernel[0]} x {kernel[1]}")
        counts.append((side + 2 * around - length) // step + 1)
    return counts[0], counts[1]
