"""In which order operations run."""

from __future__ import annotations

from visq.runtime.program import Load, Operation, Scan, Slice, Store, inputs


def scans_together(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """The operations with scans as late as possible, so that those that do not wait for one another follow each other:
    the two directions of a Vim, the four of a VMamba. Threads meet less often, and have more to take from."""
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
            if scan and (waiting - bodies).isdisjoint(loads(operation)):
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
