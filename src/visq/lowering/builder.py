"""Writes a program: where each value is computed, and which of them become tensors.

A value is computed in the body of the latest operation it depends on. What an earlier operation computed reaches it
through a tensor, as codes where it was rounded.
"""

from __future__ import annotations

from typing import Any

from visq.integer import operations as ir
from visq.integer.operations import Instruction, Operation, Source, TensorDecl
from visq.integer.program import Program
from visq.lowering.values import LoweringError, Value


class Builder:
    def __init__(self) -> None:
        self.tensors: dict[str, TensorDecl] = {}
        self.operations: list[dict[str, Any]] = []
        self._register: dict[tuple[int, Value], int] = {}
        self._tensor: dict[Value, str] = {}

    def operation(self, name: str, source: Source, rows: int, width: int, reverse: bool = False) -> Value:
        """Start an operation; the value is its register 0."""
        index = len(self.operations)
        self.operations.append({"name": name, "source": source, "rows": rows, "width": width, "body": [], "used": 1})
        value = Value("source", rows, width, parameters={"operation": index}, reverse=reverse)
        self._register[index, value] = 0
        return value

    def tensor(self, value: Value) -> str:
        """The tensor that holds a value, written now if it is not yet: codes where the value was rounded, in rotated
        coordinates where its quantizer is. Tensors are in the order of rows, so a flipped sequence is in the tensor of
        what it flips."""
        if _flips(value):
            return self.tensor(value.operands[0])
        if value not in self._tensor:
            self._write(value)
        return self._tensor[value]

    def finish(self, output: Value, channels: int, size: int) -> Program:
        name = self.tensor(output)
        operations = tuple(
            Operation(
                name=operation["name"],
                rows=operation["rows"],
                width=operation["width"],
                source=operation["source"],
                body=tuple(operation["body"]),
            )
            for operation in self.operations
        )
        return Program(channels=channels, size=size, output=name, tensors=self.tensors, operations=operations)

    # --- where

    def _home(self, value: Value) -> int:
        """The operation a value is computed in; -1 for one of selected rows, which needs an operation of its own."""
        if value.kind == "source":
            return int(value.parameters["operation"])
        if value.kind == "select":
            return -1
        return max(self._home(operand) for operand in value.operands)

    def _place(self, value: Value) -> int:
        home = self._home(value)
        if home >= 0:
            return home
        if "home" not in value.parameters:
            self.operation("rows", ir.Rows(), value.rows, 0)
            self.operations[-1]["used"] = 0
            value.parameters["home"] = len(self.operations) - 1
        return int(value.parameters["home"])

    # --- what

    def _write(self, value: Value) -> None:
        home = self._place(value)
        site = value.parameters["site"] if value.kind == "round" else None
        source = self._emit(value.operands[0] if site else value, home)
        if value.rotated:
            unrotated, source = source, self._new(home)
            self._append(home, ir.Rotate(dst=source, src=unrotated, site=value.parameters["site"]))
        name = f"t{len(self.tensors)}"
        self.tensors[name] = TensorDecl(rows=value.rows, width=value.width, site=site, reverse=value.reverse)
        self._append(home, ir.Store(src=source, tensor=name))
        self._tensor[value] = name

    def _emit(self, value: Value, home: int) -> int:
        """The register of operation `home` that holds a value."""
        key = (home, value)
        if key not in self._register:
            self._register[key] = self._compute(value, home)
        return self._register[key]

    def _compute(self, value: Value, home: int) -> int:
        if value.kind == "select":
            dst = self._new(home)
            row = value.parameters["row"]
            self._append(home, ir.Load(dst=dst, tensor=self.tensor(value.operands[0]), row=row))
            return dst
        if value.rotated:
            raise LoweringError(f"{value.parameters['site']}: a rotated tensor is read by something else than a linear")
        own = self._home(value)
        shared = value.users > 1 or value.kind in ("source", "round")
        if value in self._tensor or (0 <= own < home and shared):
            name = self.tensor(value)
            dst = self._new(home)
            self._append(home, ir.Load(dst=dst, tensor=name))
            return dst
        sources = [self._emit(operand, home) for operand in value.operands]
        dst = self._new(home)
        self._append(home, _instruction(value, dst, sources))
        return dst

    def _new(self, home: int) -> int:
        used = int(self.operations[home]["used"])
        self.operations[home]["used"] = used + 1
        return used

    def _append(self, home: int, instruction: Instruction) -> None:
        self.operations[home]["body"].append(instruction)


def _flips(value: Value) -> bool:
    """A whole sequence the other way, of which nothing was cut off."""
    return value.kind == "slice" and value.operands[0].kind != "slice" and value.reverse != value.operands[0].reverse


def _instruction(value: Value, dst: int, sources: list[int]) -> Instruction:
    p = value.parameters
    if value.kind == "slice":
        return ir.Slice(dst=dst, src=sources[0], offset=p["offset"], width=value.width)
    if value.kind == "unary":
        return ir.Unary(op=p["function"], dst=dst, src=sources[0])
    if value.kind == "binary":
        return ir.Binary(op=p["function"], dst=dst, a=sources[0], b=sources[1])
    if value.kind == "constant":
        return ir.WithConstant(op=p["function"], dst=dst, src=sources[0], constant=p["constant"])
    if value.kind == "scalar":
        return ir.WithScalar(dst=dst, src=sources[0], value=p["value"])
    if value.kind == "rms_norm":
        return ir.RmsNorm(dst=dst, src=sources[0], weight=p["weight"], eps=p["eps"])
    if value.kind == "layer_norm":
        return ir.LayerNorm(dst=dst, src=sources[0], weight=p["weight"], bias=p["bias"], eps=p["eps"])
    assert value.kind == "round"
    return ir.Round(dst=dst, src=sources[0], site=p["site"], reverse=value.reverse)
