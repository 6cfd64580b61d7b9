"""Block reconstruction: gradient descent on the distance of a quantized stage's output to the FP32 stage's."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from visq.calibrate.learners.dropping import check_share, dropping
from visq.errors import VisqError
from visq.models.stage import alike
from visq.stages.stage_run import StageRun

#: Distance of (student outputs, FP32 outputs), averaged over images.
Distance = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]


def cosine_distance(student: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
    """Returns the mean over tokens of 1 - cosine over channels of the stage's output (arXiv 2412.20386).

    A stage that returns (branch, residual) outputs their sum, which is what the next norm sees.
    """
    return 1 - torch.cosine_similarity(total(student), total(target), dim=-1).mean()


def squared_distance(student: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
    """Returns the squared error of the stage's output relative to its energy.

    BRECQ, arXiv 2102.05426, without Fisher weights.
    """
    return relative_error(total(student), total(target))


def relative_error(found: Tensor, exact: Tensor) -> Tensor:
    """Returns the mean squared error over the mean square of `exact`."""
    return (found - exact).square().mean() / exact.square().mean().clamp_min(1e-30)


def total(outputs: tuple[Tensor, ...]) -> Tensor:
    """Returns the sum of what a stage computes."""
    computed = alike(outputs)
    return sum(computed[1:], start=computed[0])


@dataclass
class Reconstruction:
    """The settings of the descent.

    Attributes:
        epochs, batch: passes over the training images, images per step.
        holdout: share of the calibration images that is never trained on and chooses the best state.
        distance: the loss, and on held-back images the choice of the best state.
        weight_decay, clip: AdamW's decay; the largest gradient norm.
        drop: share of the activations' codes that each step leaves out at random (`dropping`).
    """

    epochs: int
    batch: int
    holdout: float
    distance: Distance
    weight_decay: float = 0.0
    clip: float = 2.0
    drop: float = 0.0

    def __post_init__(self) -> None:
        check_share("learning", self.drop)
        if self.epochs < 0 or self.batch < 1 or not 0 <= self.holdout < 1:
            got = f"{self.epochs}, {self.batch}, {self.holdout}"
            raise VisqError(f"learning needs epochs >= 0, batch >= 1 and 0 <= holdout < 1, got {got}")

    def fit(
        self,
        run: StageRun,
        groups: list[dict[str, Any]],
        assign: Callable[[bool], None],
        penalty: Callable[[float], Tensor] | None = None,
    ) -> Outcome:
        """Minimizes the distance between the quantized stage on the student's inputs and the FP32 outputs.

        Leaves the parameters, and through `assign(False)` the quantizers, in the state of the smallest held-back loss,
        the initial state included. Shuffling follows `run.seed` and the stage's name only.

        Arguments:
            groups: AdamW's parameter groups.
            assign: writes the parameters into the quantizers; called with True while training, with False to evaluate
                and at the end.
            penalty: added to the distance, in units of the initial loss; its argument is the share of the training
                done, 0 to 1.
        """
        assert run.student is not None
        inputs, targets = gather(run.student.batches()), gather(run.targets.batches())
        training, held_back = split(inputs[0].shape[0], self.holdout, run.seed)
        parameters = [parameter for group in groups for parameter in group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        steps = self.epochs * -(-len(training) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1))
        generator = torch.Generator().manual_seed(run.seed * 2**32 + zlib.crc32(run.stage.name.encode()))

        def loss_of(part: Tensor) -> Tensor:
            return self.distance(run.stage.forward(*pick(inputs, part)), pick(targets, part))

        def evaluate() -> float:
            with torch.no_grad():
                assign(False)
                return sum(float(loss_of(part)) * len(part) for part in held_back.split(self.batch)) / len(held_back)

        outcome = Outcome([evaluate()])
        best = [parameter.detach().clone() for parameter in parameters]
        while len(outcome.losses) <= self.epochs and not outcome.diverged:
            for part in training[torch.randperm(len(training), generator=generator)].split(self.batch):
                assign(True)
                with dropping(run.sites().values(), self.drop, generator):
                    loss = loss_of(part)
                if penalty is not None:
                    loss = loss + outcome.losses[0] * penalty(schedule.last_epoch / steps)
                optimizer.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip)
                if not torch.isfinite(norm + loss.detach()):
                    outcome.diverged = True
                    break
                optimizer.step()
                schedule.step()
            outcome.losses.append(evaluate())
            outcome.diverged = not math.isfinite(outcome.losses[-1])
            if outcome.losses[-1] == min(outcome.losses):
                best = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, value in zip(parameters, best, strict=True):
                parameter.copy_(value)
            assign(False)
        return outcome


@dataclass
class Outcome:
    """Held-back losses, the initial state first, and whether the descent ran into NaN or Inf."""

    losses: list[float]
    diverged: bool = field(default=False)

    def report(self, run: StageRun, what: str) -> None:
        """Writes the progress line's summary, and a note if learning went wrong."""
        start, best, last = self.losses[0], min(self.losses), self.losses[-1]
        run.summary = f" ({what} {start:.3g} -> {best:.3g})"
        problem = ""
        if self.diverged:
            problem = f"learning met NaN or Inf in epoch {len(self.losses)}"
        elif last > start:
            problem = f"the held-back loss rose to {last:.3g} while learning"
        if problem:
            run.notes.append(f"{run.stage.name}: {problem}; the best state is kept ({what} {start:.3g} -> {best:.3g})")


def gather(batches: Any) -> tuple[Tensor, ...]:
    """Returns all batches of one stage as one tuple of tensors."""
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def pick(tensors: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor[index] for tensor in tensors)


def split(images: int, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the indices to train on and to hold back, the same for every stage. A single image is both."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    held = min(max(round(holdout * images), 1), images - 1)
    if held < 1 or holdout == 0:
        return order, order
    return order[held:], order[:held]
