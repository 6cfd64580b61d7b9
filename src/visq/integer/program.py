"""Defines a program, the tensors and operations that compute the logits of one image, and checks it as a whole."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from visq.integer.consistency import check_operations, map_size
from visq.integer.operations import Operation, Size, Strict, TensorDecl


class Program(Strict):
    """A program. It takes a normalized image [channels, height, width] float32.

    Attributes:
        size: pixels a side, or (height, width) of images that are not square.
        output: the tensor whose row 0 is the result.
        output_map: whether the result is all rows of `output`, a map, instead.
    """

    channels: Size
    size: Size | tuple[Size, Size]
    output: str
    output_map: bool = False
    tensors: dict[str, TensorDecl]
    operations: tuple[Operation, ...]

    @property
    def height(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Returns the shape of an image's result: (classes,), or (channels, height, width)."""
        decl = self.tensors[self.output]
        return (decl.width, *map_size(decl)) if self.output_map else (decl.width,)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values that `Program.model_validate` reads.

        Values that are None or false are left out, as are empty `functions` and zero `padding`.
        """
        values: dict[str, Any] = _pruned(self.model_dump(mode="json"))
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Program:
        if isinstance(self.size, tuple) and self.height == self.width:
            raise ValueError(f"size {list(self.size)} is square; one number says so")
        check_operations(self.operations, self.tensors, self.output, (self.channels, self.height, self.width))
        if self.output_map:
            map_size(self.tensors[self.output])
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
