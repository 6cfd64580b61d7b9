"""Hands a program to the C++ engine, one operation after the other, and decides where each tensor lies."""

from __future__ import annotations

from typing import Any

from visq.integer.operations import Linear, Load, Operation, Round, Scan, Store, inputs
from visq.integer.program import Program
from visq.native.memory import LINE, SPARE, Arena, row_bytes
from visq.runtime.bundle import Bundle
from visq.runtime.cpu.bodies import Body
from visq.runtime.cpu.codecs import CodecTable
from visq.runtime.cpu.schedule import origins, reads_registers
from visq.runtime.cpu.sources import Target, add_source
from visq.runtime.operation_forms import form_of, reason


class Writer:
    """Writes a program into an engine.

    Attributes:
        in_float: for each operation that runs in float32, why.
    """

    def __init__(self, program: Program, bundle: Bundle, engine: Any, separate_memory: bool) -> None:
        self.program, self.bundle, self.engine, self.separate_memory = program, bundle, engine, separate_memory
        self.in_float: dict[str, str] = {}
        self.codecs = CodecTable(bundle, engine)
        self.tensors: dict[str, int] = {}
        # By name, the tensor that holds the same codes and was stored first.
        self.duplicates: dict[str, str] = {}
        self.arena = Arena(LINE)
        self.offsets: dict[str, int] = {}
        # Tensors that the operations of the running phase write, and memory to free after it.
        self.phase: set[str] = set()
        self.unused: list[int] = []
        self.last_reader = self._last_readers()

    def write(self) -> dict[str, int]:
        """Writes every operation and returns the index of every tensor by name."""
        for index, operation in enumerate(self.program.operations):
            self._operation(index, operation)
            self.bundle.forget()  # the engine has its own copies
        self.engine.finish(self.arena.size + SPARE, self.tensors[self.program.output])
        return self.tensors

    def _last_readers(self) -> dict[str, int]:
        """The operation that reads a tensor last, or that writes it where none reads it."""
        last: dict[str, int] = {}
        for index, operation in enumerate(self.program.operations):
            for name in inputs(operation.source):
                last[name] = index
            for step in operation.body:
                if isinstance(step, Load | Store):
                    last[step.tensor] = index
        last[self.program.output] = len(self.program.operations)
        return last

    def _operation(self, index: int, operation: Operation) -> None:
        joins = index > 0 and self._joins(operation, self.program.operations[index - 1])
        if not joins:
            self._free()
            self.phase.clear()
        self._place_stores(operation)
        by_scan, y = None, -1
        if isinstance(operation.source, Scan):
            by_scan = self._only_rounding_of_y(operation)
            y = self._scan_output(operation, by_scan)
        form = form_of(self.program, operation, self.bundle)  # dropped at once: the engine has its own packed copy
        if (why := reason(form)) is not None:
            self.in_float[operation.name] = why
        add_source(Target(self.engine, self.bundle, operation, self.tensors, y), form)
        if joins:
            self.engine.join()
        body = Body(self.program, operation, self.bundle, self.engine, self.codecs, self.tensors, self.duplicates)
        body.write(by_scan, y)
        if not self.separate_memory:
            self.unused += [self.offsets[name] for name, last in self.last_reader.items() if last == index]

    def _joins(self, operation: Operation, before: Operation) -> bool:
        """Whether an operation may run tile by tile with those before it: it reads only its own row of what they write.

        Their memory is used again only after all of them.
        """
        source = operation.source
        starts_scan = isinstance(source, Scan) and not isinstance(before.source, Scan)
        if operation.rows != before.rows or starts_scan:
            return False
        other_rows = set() if isinstance(source, Linear) else set(inputs(source))
        other_rows |= {step.tensor for step in operation.body if isinstance(step, Load) and step.row is not None}
        return not {self.duplicates.get(name, name) for name in other_rows} & self.phase

    # --- memory

    def _free(self) -> None:
        for offset in self.unused:
            self.arena.free(offset)
        self.unused.clear()

    def _codec(self, name: str) -> int:
        """The index of a tensor's codec; -1 for float32."""
        decl = self.program.tensors[name]
        return -1 if decl.site is None else self.codecs.index(decl.site, decl.rows, decl.width, decl.reverse)

    def _place(self, name: str) -> None:
        decl = self.program.tensors[name]
        self.offsets[name] = self.arena.take(decl.rows * row_bytes(decl.width, decl.site is not None))
        self.tensors[name] = self.engine.add_tensor(decl.rows, decl.width, self.offsets[name], self._codec(name))

    def _place_stores(self, operation: Operation) -> None:
        """Places the tensors a body stores. A body that stores the same codes twice stores them once."""
        stored: dict[tuple[tuple[int, int], int, int], str] = {}
        registers = origins(operation)
        for step in operation.body:
            if not isinstance(step, Store):
                continue
            key = (registers[step.src], self.program.tensors[step.tensor].width, self._codec(step.tensor))
            first = stored.setdefault(key, step.tensor)
            if first == step.tensor or self.separate_memory:
                self._place(step.tensor)
                self.phase.add(step.tensor)
                continue
            self.duplicates[step.tensor], self.tensors[step.tensor] = first, self.tensors[first]
            self.last_reader[first] = max(self.last_reader[first], self.last_reader.pop(step.tensor))

    # --- a scan's result

    def _only_rounding_of_y(self, operation: Operation) -> Store | Round | None:
        """The instruction that makes codes of y, if nothing else reads y: then the scan writes the codes itself."""
        readers = [step for step in operation.body if 0 in reads_registers(step)]
        if len(readers) != 1 or not isinstance(readers[0], Store | Round):
            return None
        reader = readers[0]
        site = self.program.tensors[reader.tensor].site if isinstance(reader, Store) else reader.site
        return None if site is None or self.bundle.codec(site).table is not None else reader

    def _scan_output(self, operation: Operation, by_scan: Store | Round | None) -> int:
        """The index of the tensor a scan writes y to, as codes where `by_scan` makes them."""
        rows, width = operation.rows, operation.width
        if isinstance(by_scan, Store):
            return self.tensors[by_scan.tensor]
        codec = -1 if by_scan is None else self.codecs.index(by_scan.site, rows, width, by_scan.reverse)
        offset = self.arena.take(rows * row_bytes(width, by_scan is not None))
        if not self.separate_memory:
            self.unused.append(offset)
        return int(self.engine.add_tensor(rows, width, offset, codec))
