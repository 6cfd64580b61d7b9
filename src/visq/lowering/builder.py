"""Writes a program: decides which operation computes each value, and which values become tensors.

The body of the latest operation that a value depends on computes the value. It reads results of earlier operations from
tensors, which hold codes if the result was rounded and float32 otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from visq.integer import operations as ir
from visq.integer.operations import Instruction, Operation, Source, TensorDecl
from visq.integer.program import Program
from visq.lowering.values import LoweringError, Map, Value


class Builder:
    """A program under construction: its tensors, its operations, and the register of each value."""

    def __init__(self) -> None:
        self.tensors: dict[str, TensorDecl] = {}
        self.operations: list[dict[str, Any]] = []
        self._register: dict[tuple[int, Value], int] = {}
        self._tensor: dict[Value, str] = {}
        self._maps: dict[str, int | None] = {}

    def operation(
        self, name: str, source: Source, rows: int, width: int, reverse: bool = False, length: int | None = 0
    ) -> Value:
        """Starts an operation and returns the value in its register 0, [rows, width], in sequences of `length` rows."""
        index = len(self.operations)
        self.operations.append({"name": name, "source": source, "rows": rows, "width": width, "body": [], "used": 1})
        value = Value("source", rows, width, parameters={"operation": index}, reverse=reverse, length=length)
        self._register[index, value] = 0
        return value

    def rows(self, name: str, rows: int) -> int:
        """Starts an operation whose body loads its rows, and returns its index, the `home` of values computed there.

        It is left out of the program where nothing is computed in it.
        """
        self.operation(name, ir.Rows(), rows, 0)
        self.operations[-1]["used"] = 0
        return len(self.operations) - 1

    def tensor(self, value: Value) -> str:
        """Returns the name of the tensor that holds a value, and stores the value on the first call.

        The tensor holds codes if the value was rounded, in rotated coordinates if its quantizer is rotated. A tensor's
        rows keep their order, so a flipped sequence shares the tensor of the sequence that it flips.
        """
        if _flips(value):
            return self.tensor(value.operands[0])
        if value not in self._tensor:
            self._write(value)
        return self._tensor[value]

    def map_tensor(self, x: Map) -> str:
        """Returns the name of the tensor that holds a map, and notes its height there unless it is square.

        Raises:
            LoweringError: the same rows are a map of another height elsewhere.
        """
        name = self.tensor(x.value)
        height = None if x.height == x.width else x.height
        if name in self._maps and self._maps[name] != height:
            raise LoweringError(f"tensor {name} is read as maps of different heights")
        self._maps[name] = height
        self.tensors[name] = self.tensors[name].model_copy(update={"height": height})
        return name

    def finish(self, output: Value | Map, channels: int, size: tuple[int, int]) -> Program:
        """Returns the program with `output` stored: a map as a whole, otherwise row 0; `size` is of its images."""
        whole = isinstance(output, Map)
        name = self.map_tensor(output) if isinstance(output, Map) else self.tensor(output)
        operations = tuple(
            Operation(
                name=operation["name"],
                rows=operation["rows"],
                width=operation["width"],
                source=operation["source"],
                body=tuple(operation["body"]),
            )
            for operation in self.operations
            if operation["body"] or not isinstance(operation["source"], ir.Rows)
        )
        return Program(
            channels=channels,
            size=size[0] if size[0] == size[1] else size,
            output=name,
            output_map=whole,
            tensors=self.tensors,
            operations=operations,
        )

    # --- the operation of a value

    def _home(self, value: Value) -> int:
        """Returns the index of the operation that computes a value; -1 for selected rows, which need their own."""
        if "home" in value.parameters:
            return int(value.parameters["home"])
        if value.kind == "source":
            return int(value.parameters["operation"])
        if value.kind == "select":
            return -1
        return max(self._home(operand) for operand in value.operands)

    def _place(self, value: Value) -> int:
        home = self._home(value)
        if home >= 0:
            return home
        value.parameters["home"] = self.rows("rows", value.rows)
        return int(value.parameters["home"])

    # --- the instructions of a value

    def _write(self, value: Value) -> None:
        home = self._place(value)
        site = value.parameters["site"] if value.kind == "round" else None
        source = self._emit(value.operands[0] if site else value, home)
        if value.rotated:
            unrotated, source = source, self._new(home)
            self._append(home, ir.Rotate(dst=source, src=unrotated, site=value.parameters["site"]))
        name = f"t{len(self.tensors)}"
        self.tensors[name] = TensorDecl(
            rows=value.rows, width=value.width, site=site, reverse=value.reverse, length=value.length or None
        )
        self._append(home, ir.Store(src=source, tensor=name))
        self._tensor[value] = name

    def _emit(self, value: Value, home: int) -> int:
        """Returns the register of operation `home` that holds a value."""
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
    """Returns whether a value is another sequence in reverse order and nothing else."""
    return value.kind == "slice" and value.operands[0].kind != "slice" and value.reverse != value.operands[0].reverse


def _instruction(value: Value, dst: int, sources: list[int]) -> Instruction:
    """Returns the row instruction that computes a value from the registers of its operands."""
    return _INSTRUCTIONS[value.kind](value, dst, *sources)


def _chosen(value: Value, *names: str) -> dict[str, Any]:
    return {name: value.parameters[name] for name in names}


#: Makes the instruction for each kind of value: (value, register of the result, registers of the operands).
_INSTRUCTIONS: dict[str, Callable[..., Instruction]] = {
    "slice": lambda v, dst, src: ir.Slice(dst=dst, src=src, offset=v.parameters["offset"], width=v.width),
    "unary": lambda v, dst, src: ir.Unary(op=v.parameters["function"], dst=dst, src=src),
    "binary": lambda v, dst, a, b: ir.Binary(op=v.parameters["function"], dst=dst, a=a, b=b),
    "append": lambda v, dst, a, b: ir.Append(dst=dst, a=a, b=b),
    "turn": lambda v, dst, src: ir.Turn(dst=dst, src=src),
    "constant": lambda v, dst, src: ir.WithConstant(
        op=v.parameters["function"], dst=dst, src=src, constant=v.parameters["constant"]
    ),
    "values": lambda v, dst, src: ir.AddValues(dst=dst, src=src, values=v.parameters["values"]),
    "scalar": lambda v, dst, src: ir.WithScalar(dst=dst, src=src, value=v.parameters["value"]),
    "rms_norm": lambda v, dst, src: ir.RmsNorm(dst=dst, src=src, **_chosen(v, "weight", "eps")),
    "layer_norm": lambda v, dst, src: ir.LayerNorm(dst=dst, src=src, **_chosen(v, "weight", "bias", "eps")),
    "round": lambda v, dst, src: ir.Round(
        dst=dst, src=src, site=v.parameters["site"], reverse=v.reverse, length=v.length or None
    ),
}
