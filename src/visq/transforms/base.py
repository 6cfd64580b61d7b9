"""The base of transforms, and their registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

from visq.errors import VisqError
from visq.integer.spec import Named
from visq.stages.stage_run import StageRun

TRANSFORMS: dict[str, type[Transform]] = {}

T = TypeVar("T", bound="type[Transform]")


class Transform:
    """Rewrites one stage of the network before its sites are observed; the stage computes the same function
    afterwards."""

    def apply(self, run: StageRun) -> None:
        raise NotImplementedError


def register(name: str) -> Callable[[T], T]:
    def decorate(cls: T) -> T:
        TRANSFORMS[name] = cls
        return cls

    return decorate


def make_transform(named: Named) -> Transform:
    """Raises VisqError for an unknown transform or parameter."""
    if named.name not in TRANSFORMS:
        raise VisqError(f"unknown transform '{named.name}'; known: {', '.join(sorted(TRANSFORMS))}")
    cls = TRANSFORMS[named.name]
    allowed = set(inspect.signature(cls).parameters)
    if unknown := sorted(set(named.params) - allowed):
        raise VisqError(
            f"transform '{named.name}' has no parameter {', '.join(unknown)}; "
            f"known: {', '.join(sorted(allowed)) or 'none'}"
        )
    return cls(**named.params)
