"""Which implementation of an op runs, and why.

Implementations register themselves by op with a priority, the devices they run on, and a check that returns
``(ok, reason)``. The highest priority that passes is used. ``VISQ_OPS=naive|cpp`` forces one family;
``VISQ_ISA=scalar|avx2|avx512`` forces the instruction set of the C++ kernels; ``avx512vnni`` and ``amx`` are ``avx512``
here, and a variant of their own in the integer engine.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from visq.errors import VisqError
from visq.ops import _native

Check = Callable[[], tuple[bool, str]]
Function = TypeVar("Function", bound=Callable[..., Any])

_registry: dict[str, list[_Implementation]] = {}
_warned: set[str] = set()


@dataclass(frozen=True)
class _Implementation:
    name: str
    priority: int
    function: Callable[..., Any]
    check: Check
    devices: tuple[str, ...]

    def usable(self, device: str) -> tuple[bool, str]:
        if self.devices and device not in self.devices:
            return False, f"runs on {', '.join(self.devices)} only, not on {device}"
        return self.check()

    def kernel(self) -> str:
        return f"cpp-{_native.isa()}" if self.name == "cpp" else self.name


@dataclass(frozen=True)
class Choice:
    """The kernel an op uses, and the faster ones it does not use with the reason for each."""

    kernel: str
    not_used: tuple[tuple[str, str], ...]


def register(op: str, name: str) -> Callable[[Function], Function]:
    """Decorator: registers a function as the `name` implementation ("naive" or "cpp") of an op."""
    priority, check, devices = {
        "naive": (0, lambda: (True, ""), ()),
        "cpp": (10, _native.available, ("cpu",)),
    }[name]

    def decorate(function: Function) -> Function:
        implementations = _registry.setdefault(op, [])
        implementations.append(_Implementation(name, priority, function, check, devices))
        implementations.sort(key=lambda i: -i.priority)
        return function

    return decorate


def _choose(op: str, device: str) -> tuple[_Implementation, list[tuple[str, str]]]:
    forced = os.environ.get("VISQ_OPS", "")
    names = {i.name for i in _registry[op]}
    if forced and forced not in names:
        raise VisqError(f"VISQ_OPS={forced!r} is not an implementation of {op}; known: {', '.join(sorted(names))}")
    not_used = []
    for implementation in _registry[op]:
        if forced and implementation.name != forced:
            not_used.append((implementation.name, f"VISQ_OPS={forced} is set"))
            continue
        ok, reason = implementation.usable(device)
        if ok:
            return implementation, not_used
        not_used.append((implementation.name, reason))
    why = "; ".join(f"{name}: {reason}" for name, reason in not_used)
    raise VisqError(f"no implementation of {op} can run on {device} ({why})")


def call(op: str, device: str, *args: Any) -> Any:
    """Runs the chosen implementation of an op. The first time a slow one has to do, says so once."""
    implementation, not_used = _choose(op, device)
    if not_used and implementation.name == "naive" and op not in _warned and not os.environ.get("VISQ_OPS"):
        _warned.add(op)
        why = "; ".join(f"{name}: {reason}" for name, reason in not_used)
        warnings.warn(f"visq: {op} runs as a slow PyTorch loop ({why})", RuntimeWarning, stacklevel=3)
    return implementation.function(*args)


def implementation(op: str, name: str) -> Callable[..., Any]:
    """One implementation of an op by name."""
    return next(i.function for i in _registry[op] if i.name == name)


def describe(device: str = "cpu") -> dict[str, Choice]:
    """For each op: the kernel it uses on a device (such as "cpp-avx512"), and why faster ones are not used."""
    result = {}
    for op in sorted(_registry):
        implementation, not_used = _choose(op, device)
        result[op] = Choice(implementation.kernel(), tuple(not_used))
    return result
