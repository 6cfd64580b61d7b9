"""In which order operations run, and what they read and write."""

from __future__ import annotations

from visq.integer.operations import Binary, Instruction, Load, Operation, Scan, Slice, Store, inputs


def scans_together(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """Returns the operations with scans as late as possible, so that independent scans follow each other.

    These are the two directions of a Vim and the four of a VMamba. Threads then meet less often, and find more tasks
    at a time.
    """
    ordered: list[Operation] = []
    left = list(operations)
    while left:
        later: list[Operation] = []
        waiting: set[str] = set()
        for operation in left:
            waits = isinstance(operation.source, Scan) or not waiting.isdisjoint(reads(operation))
            (later if waits else ordered).append(operation)
            waiting |= stores(operation) if waits else set()
        left = []
        bodies: set[str] = set()  # of scans that go on: bodies of others may read what they store
        for operation in later:
            scan = isinstance(operation.source, Scan) and waiting.isdisjoint(inputs(operation.source))
            others = waiting - bodies - stores(operation)
            if scan and others.isdisjoint(loads(operation)):
                ordered.append(operation)
                bodies |= stores(operation)
            else:
                left.append(operation)
    return tuple(ordered)


def loads(operation: Operation) -> set[str]:
    """The tensors that a body reads."""
    return {step.tensor for step in operation.body if isinstance(step, Load)}


def stores(operation: Operation) -> set[str]:
    return {step.tensor for step in operation.body if isinstance(step, Store)}


def reads(operation: Operation) -> set[str]:
    return set(inputs(operation.source)) | loads(operation)


def origins(operation: Operation) -> dict[int, tuple[int, int]]:
    """The register that each register of a body is a slice of, and its first channel there."""
    found = {0: (0, 0)}
    for step in operation.body:
        if isinstance(step, Slice):
            register, offset = found[step.src]
            found[step.dst] = (register, offset + step.offset)
        elif not isinstance(step, Store):
            found[step.dst] = (step.dst, 0)
    return found


def reads_registers(step: Instruction) -> tuple[int, ...]:
    """The registers an instruction reads."""
    if isinstance(step, Binary):
        return step.a, step.b
    return () if isinstance(step, Load) else (step.src,)
