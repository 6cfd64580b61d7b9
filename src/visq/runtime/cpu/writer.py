"""Writes a program into a flat file, operation by operation, and places each tensor in memory."""

from __future__ import annotations

from visq.integer.operations import Attention, Linear, Load, Operation, Round, Scan, Store, inputs
from visq.integer.program import Program
from visq.native.flat_file import FlatFile
from visq.native.memory import LINE, SPARE, Arena, row_bytes
from visq.runtime.bundle import Bundle
from visq.runtime.cpu.bodies import Body
from visq.runtime.cpu.codecs import CodecTable
from visq.runtime.cpu.schedule import origins, reads_registers, scans_together
from visq.runtime.cpu.sources import Target, add_source
from visq.runtime.operation_forms import form_of, reason


class Writer:
    """The writer of one program into one file.

    Arguments:
        separate_memory: gives every tensor its own memory.

    Attributes:
        program: the program in the order it is written.
        file: the file; `file.bytes()` after `write`.
        in_float: for each operation that runs in float32, the reason.
    """

    def __init__(self, program: Program, bundle: Bundle, separate_memory: bool = False) -> None:
        program = program.model_copy(update={"operations": scans_together(program.operations)})
        self.program, self.bundle, self.separate_memory = program, bundle, separate_memory
        self.file = FlatFile(program.channels, program.height, program.width)
        self.heights = {name: decl.height for name, decl in program.tensors.items()}
        self.in_float: dict[str, str] = {}
        self.codecs = CodecTable(bundle, self.file)
        self.tensors: dict[str, int] = {}
        # By name of a tensor that is not stored, the stored tensor with the same content.
        self.duplicates: dict[str, str] = {}
        self.arena = Arena(LINE)
        self.offsets: dict[str, int] = {}
        # Tensors that the current phase writes, and offsets of memory to free after it.
        self.phase: set[str] = set()
        self.unused: list[int] = []
        self.last_reader = self._last_readers()

    def write(self) -> dict[str, int]:
        """Writes every operation and returns the index of every tensor by name."""
        for index, operation in enumerate(self.program.operations):
            self._operation(index, operation)
            self.bundle.forget()  # the file has its own copies
        if self.program.output_map:
            if (height := self.heights[self.program.output]) is not None:
                self.file.add("map", self.tensors[self.program.output], height)
            self.file.add("whole_output")
        self.file.add("finish", self.arena.size + SPARE, self.tensors[self.program.output])
        return self.tensors

    def _last_readers(self) -> dict[str, int]:
        """Returns the index of the operation that reads each tensor last, or writes it if none reads it."""
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
        if isinstance(operation.source, Attention):
            y = self._scan_output(operation, None)
        form = form_of(self.program, operation, self.bundle)  # not kept: the file has its own packed copy
        if (why := reason(form)) is not None:
            self.in_float[operation.name] = why
        target = Target(self.file, self.bundle, operation, self.tensors, self.heights, self.codecs, y)
        add_source(target, form)
        if joins:
            self.file.add("join")
        body = Body(self.program, operation, self.bundle, self.file, self.codecs, self.tensors, self.duplicates)
        body.write(by_scan, y)
        if not self.separate_memory:
            self.unused += [self.offsets[name] for name, last in self.last_reader.items() if last == index]

    def _joins(self, operation: Operation, before: Operation) -> bool:
        """Returns whether an operation may join the current phase and run tile by tile with it.

        It may if it reads only its own row of tensors that the phase writes. Memory is freed after the whole phase.
        """
        source = operation.source
        starts_scan = isinstance(source, Scan) and not isinstance(before.source, Scan)
        if operation.rows != before.rows or starts_scan or isinstance(source, Attention):
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
        """Returns the file's index of a tensor's codec; -1 for float32."""
        decl = self.program.tensors[name]
        return (
            -1 if decl.site is None else self.codecs.index(decl.site, decl.rows, decl.width, decl.reverse, decl.length)
        )

    def _place(self, name: str) -> None:
        decl = self.program.tensors[name]
        self.offsets[name] = self.arena.take(decl.rows * row_bytes(decl.width, decl.site is not None))
        self.tensors[name] = self.file.add_tensor(decl.rows, decl.width, self.offsets[name], self._codec(name))

    def _place_stores(self, operation: Operation) -> None:
        """Places the tensors that a body stores. Stores of one register with one codec share a place."""
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
        """Returns the instruction that rounds y to codes, if it alone reads y; otherwise None, also for a table.

        The scan then writes the codes itself.
        """
        readers = [step for step in operation.body if 0 in reads_registers(step)]
        if len(readers) != 1 or not isinstance(readers[0], Store | Round):
            return None
        reader = readers[0]
        site = self.program.tensors[reader.tensor].site if isinstance(reader, Store) else reader.site
        return None if site is None or self.bundle.codec(site).table is not None else reader

    def _scan_output(self, operation: Operation, by_scan: Store | Round | None) -> int:
        """Returns the file's index of the tensor that a scan writes: codes of `by_scan`, or float32 if None."""
        rows, width = operation.rows, operation.width
        if isinstance(by_scan, Store):
            return self.tensors[by_scan.tensor]
        codec = -1 if by_scan is None else self.codecs.index(by_scan.site, rows, width, by_scan.reverse, by_scan.length)
        offset = self.arena.take(rows * row_bytes(width, by_scan is not None))
        if not self.separate_memory:
            self.unused.append(offset)
        return self.file.add_tensor(rows, width, offset, codec)
