"""A program: the tensors and operations that make logits of one image, checked as a whole."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from visq.integer.consistency import check_operations
from visq.integer.operations import Operation, Size, Strict, TensorDecl


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
