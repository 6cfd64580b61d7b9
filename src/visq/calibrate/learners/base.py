"""The base of learners, and their registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

from visq.errors import VisqError
from visq.integer.spec import Named
from visq.stages.stage_run import StageRun

LEARNERS: dict[str, type[Learner]] = {}

T = TypeVar("T", bound="type[Learner]")


class Learner:
    """Tunes one stage, whose quantizers are attached and whose weights are not baked yet.

    `run.inputs` and `run.targets` hold the stage's FP32 inputs and outputs.

    Attributes:
        needs_student: the learner reads `run.student`, the stage's inputs in the network quantized so far.
    """

    needs_student = False

    def tune(self, run: StageRun) -> None:
        raise NotImplementedError


def register(name: str) -> Callable[[T], T]:
    def decorate(cls: T) -> T:
        LEARNERS[name] = cls
        return cls

    return decorate


def make_learner(named: Named) -> Learner:
    """Raises VisqError for an unknown learner or parameter."""
    if named.name not in LEARNERS:
        raise VisqError(f"unknown learner '{named.name}'; known: {', '.join(sorted(LEARNERS))}")
    cls = LEARNERS[named.name]
    allowed = set(inspect.signature(cls).parameters)
    if unknown := sorted(set(named.params) - allowed):
        raise VisqError(
            f"learner '{named.name}' has no parameter {', '.join(unknown)}; "
            f"known: {', '.join(sorted(allowed)) or 'none'}"
        )
    return cls(**named.params)
