"""Defines a program, the tensors and operations that compute the logits of one image, and checks it as a whole."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from visq.integer.consistency import check_operations
from visq.integer.operations import Operation, Size, Strict, TensorDecl


class Program(Strict):
    """A program. It takes a normalized image [channels, size, size] float32; row 0 of tensor `output` is its result."""

    channels: Size
    size: Size
    output: str
    tensors: dict[str, TensorDecl]
    operations: tuple[Operation, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values that `Program.model_validate` reads.

        Values that are None or false are left out, as are empty `functions` and zero `padding`.
        """
        values: dict[str, Any] = _pruned(self.model_dump(mode="json"))
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Program:
        check_operations(self.operations, self.tensors, self.output, (self.channels, self.size))
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
