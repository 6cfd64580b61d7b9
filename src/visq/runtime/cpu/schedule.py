"""Orders operations so that independent scans run together, and finds the tensors and registers they use."""

from __future__ import annotations

from visq.errors import VisqError
from visq.integer.operations import Append, Binary, Instruction, Load, Operation, Scan, Slice, Store, inputs


def scans_together(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """Returns the operations with scans as late as possible, so that independent scans follow each other.

    Such scans are the two directions of a Vim and the four of a VMamba. Together they give threads more tasks at a
    time, and threads wait for each other less often.

    The loop ends for every checked program. The first operation put off is a scan, and it reads only tensors of
    ordered operations or of its own body. So each turn orders at least one operation.
    """
    ordered: list[Operation] = []
    left = list(operations)
    while left:
        later = _put_off(left, ordered)
        left = _next_scans(later, ordered)
        if later and len(left) == len(later):  # only in a program that reads a tensor nobody wrote
            raise VisqError(f"operation {left[0].name} waits for itself")
    return tuple(ordered)


def _put_off(operations: list[Operation], ordered: list[Operation]) -> list[Operation]:
    """Orders the operations that wait for no scan; returns the scans and the operations that wait for one."""
    later: list[Operation] = []
    waiting: set[str] = set()
    for operation in operations:
        waits = isinstance(operation.source, Scan) or not waiting.isdisjoint(reads(operation))
        (later if waits else ordered).append(operation)
        waiting |= stores(operation) if waits else set()
    return later


def _next_scans(operations: list[Operation], ordered: list[Operation]) -> list[Operation]:
    """Orders the scans that wait for no other of `operations`; returns the rest.

    The body of a scan may read the results of scans ordered before it.
    """
    waiting: set[str] = set().union(*map(stores, operations))
    left: list[Operation] = []
    bodies: set[str] = set()  # tensors that ordered scans store, which bodies of later scans may read
    for operation in operations:
        others = waiting - bodies - stores(operation)
        free = waiting.isdisjoint(inputs(operation.source)) and others.isdisjoint(loads(operation))
        if isinstance(operation.source, Scan) and free:
            ordered.append(operation)
            bodies |= stores(operation)
        else:
            left.append(operation)
    return left


def loads(operation: Operation) -> set[str]:
    """Returns the tensors that a body reads."""
    return {step.tensor for step in operation.body if isinstance(step, Load)}


def stores(operation: Operation) -> set[str]:
    """Returns the tensors that a body writes."""
    return {step.tensor for step in operation.body if isinstance(step, Store)}


def reads(operation: Operation) -> set[str]:
    """Returns the tensors that a source or body reads."""
    return set(inputs(operation.source)) | loads(operation)


def origins(operation: Operation) -> dict[int, tuple[int, int]]:
    """Returns, for each register of a body, the register it is a slice of (or itself) and its first channel there."""
    found = {0: (0, 0)}
    for step in operation.body:
        if isinstance(step, Slice):
            register, offset = found[step.src]
            found[step.dst] = (register, offset + step.offset)
        elif not isinstance(step, Store):
            found[step.dst] = (step.dst, 0)
    return found


def reads_registers(step: Instruction) -> tuple[int, ...]:
    """Returns the registers an instruction reads."""
    if isinstance(step, Append | Binary):
        return step.a, step.b
    return () if isinstance(step, Load) else (step.src,)
