"""Chooses which implementation of an op runs, and says why.

An implementation registers itself under its op with a priority, the devices it runs on, and a check that returns
``(ok, reason)``. The highest priority that passes runs. Another package may register one as well
(docs/add-a-kernel.md).

``VISQ_OPS=naive|cpp|...`` forces the implementations of one name. ``VISQ_ISA=scalar|avx2|avx512`` forces the
instruction set of the C++ kernels; ``avx512vnni`` and ``amx`` mean ``avx512`` here, and a variant of their own in the
integer engine.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from visq.errors import VisqError

#: check(*args) -> (ok, reason). Called with the arguments of the op, or with none to ask about the machine alone.
Check = Callable[..., tuple[bool, str]]
Function = TypeVar("Function", bound=Callable[..., Any])

_registry: dict[str, list[_Implementation]] = {}
_warned: set[str] = set()
_recorders: list[Counter[tuple[str, str]]] = []


def _always(*args: Any) -> tuple[bool, str]:
    return True, ""


@dataclass(frozen=True)
class _Implementation:
    name: str
    priority: int
    function: Callable[..., Any]
    check: Check
    devices: tuple[str, ...]
    label: Callable[[], str]

    def usable(self, device: str, args: tuple[Any, ...]) -> tuple[bool, str]:
        if self.devices and device not in self.devices:
            return False, f"runs on {', '.join(self.devices)} only, not on {device}"
        return self.check(*args)


@dataclass(frozen=True)
class Choice:
    """The kernel an op uses, and the faster ones it does not use with the reason for each."""

    kernel: str
    not_used: tuple[tuple[str, str], ...]


def register(
    op: str,
    name: str,
    *,
    priority: int = 0,
    devices: tuple[str, ...] = (),
    check: Check = _always,
    label: Callable[[], str] | None = None,
) -> Callable[[Function], Function]:
    """Decorator: registers a function as an implementation of an op.

    Arguments:
        op: the op's name, such as "selective_scan"; the function takes the arguments of the op's other
            implementations.
        name: what VISQ_OPS calls it. The oracle is "naive" and has priority 0; the C++ kernels have 10.
        priority: among implementations that can run, the highest one does.
        devices: torch device types it runs on; empty for all.
        check: whether it can run, see `Check`.
        label: what tables show, such as "cpp-avx512"; by default the name.
    Raises:
        VisqError: the op has an implementation of that name already.
    """

    def decorate(function: Function) -> Function:
        implementations = _registry.setdefault(op, [])
        if any(other.name == name for other in implementations):
            raise VisqError(f"op {op} has an implementation {name!r} already")
        found = _Implementation(name, priority, function, check, devices, label or (lambda: name))
        implementations.append(found)
        implementations.sort(key=lambda i: -i.priority)
        return function

    return decorate


def unregister(op: str, name: str) -> None:
    """Takes an implementation out again."""
    _registry[op] = [i for i in _registry[op] if i.name != name]


def _choose(op: str, device: str, args: tuple[Any, ...] = ()) -> tuple[_Implementation, list[tuple[str, str]]]:
    forced = os.environ.get("VISQ_OPS", "")
    names = {i.name for i in _registry[op]}
    if forced and forced not in names:
        raise VisqError(f"VISQ_OPS={forced!r} is not an implementation of {op}; known: {', '.join(sorted(names))}")
    not_used = []
    for implementation in _registry[op]:
        if forced and implementation.name != forced:
            not_used.append((implementation.name, f"VISQ_OPS={forced} is set"))
            continue
        ok, reason = implementation.usable(device, args)
        if ok:
            return implementation, not_used
        not_used.append((implementation.name, reason))
    why = "; ".join(f"{name}: {reason}" for name, reason in not_used)
    raise VisqError(f"no implementation of {op} can run on {device} ({why})")


def call(op: str, device: str, *args: Any) -> Any:
    """Runs the chosen implementation of an op. The first time the oracle runs for want of a kernel, warns once."""
    implementation, not_used = _choose(op, device, args)
    if not_used and implementation.name == "naive" and op not in _warned and not os.environ.get("VISQ_OPS"):
        _warned.add(op)
        why = "; ".join(f"{name}: {reason}" for name, reason in not_used)
        warnings.warn(f"visq: {op} runs as a slow loop ({why})", RuntimeWarning, stacklevel=3)
    for recorder in _recorders:
        recorder[op, implementation.label()] += 1
    return implementation.function(*args)


def usable(op: str, device: str) -> bool:
    """Returns whether an op has any implementation for a device."""
    return any(i.usable(device, ())[0] for i in _registry[op])


def implementation(op: str, name: str) -> Callable[..., Any]:
    """Returns one implementation of an op by name."""
    return next(i.function for i in _registry[op] if i.name == name)


def describe(device: str = "cpu") -> dict[str, Choice]:
    """Returns, for each op, the kernel it uses on a device (such as "cpp-avx512"), and why faster ones are not used.

    An op that has no implementation for the device has the kernel "none".
    """
    result = {}
    for op in sorted(_registry):
        if usable(op, device):
            chosen, not_used = _choose(op, device)
            result[op] = Choice(chosen.label(), tuple(not_used))
        else:
            reasons = ((i.name, i.usable(device, ())[1]) for i in _registry[op])
            result[op] = Choice("none", tuple(reasons))
    return result


@contextmanager
def recorded() -> Iterator[Counter[tuple[str, str]]]:
    """Counts, inside a `with` block, how often each (op, kernel) runs."""
    counter: Counter[tuple[str, str]] = Counter()
    _recorders.append(counter)
    try:
        yield counter
    finally:
        # By identity: two recorders that have counted the same are equal.
        _recorders[:] = [recorder for recorder in _recorders if recorder is not counter]
