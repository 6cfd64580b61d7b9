"""The bases of learners, and their registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import nn

from visq.errors import VisqError
from visq.integer.spec import Named
from visq.stages.stage_run import StageRun
from visq.stages.stream import Stream

LEARNERS: dict[str, type[Learner] | type[NetworkLearner]] = {}

T = TypeVar("T", bound="type[Learner] | type[NetworkLearner]")


class Learner:
    """Tunes one stage, whose quantizers are attached and whose weights are not baked yet.

    `run.inputs` and `run.targets` hold the stage's FP32 inputs and outputs.

    Attributes:
        needs_student: the learner reads `run.student`, the stage's inputs in the network quantized so far.
    """

    needs_student = False

    def tune(self, run: StageRun) -> None:
        raise NotImplementedError


@dataclass
class NetworkRun:
    """What learners of the whole network see of it.

    Attributes:
        model: the network; every targeted site has its quantizer, and weights are baked.
        exact: FP32, as it came to calibration.
        teacher: batches of (images, FP32's outputs).
        folder: where a learner keeps its state for a run that is killed.
        report: called with a line of progress.
        notes: remarks for the user.
    """

    model: nn.Module
    exact: nn.Module
    teacher: Stream
    folder: Path
    seed: int
    report: Callable[[str], None]
    notes: list[str] = field(default_factory=list)


class NetworkLearner:
    """Tunes the whole network after its last stage, and leaves its weights baked."""

    def tune(self, run: NetworkRun) -> None:
        raise NotImplementedError


def register(name: str) -> Callable[[T], T]:
    def decorate(cls: T) -> T:
        LEARNERS[name] = cls
        return cls

    return decorate


def make_learner(named: Named) -> Learner | NetworkLearner:
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
