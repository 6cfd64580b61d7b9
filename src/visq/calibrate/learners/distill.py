"""Tunes a whole quantized network on the calibration images until its outputs are FP32's. No labels are used.

Block reconstruction compares blocks, and the errors of all blocks add up on the way to the logits. Here the loss is the
divergence of the logits themselves (knowledge distillation, arXiv 1503.02531; for quantized networks LLM-QAT, arXiv
2305.17888), and everything is learned at once. FP32 looks at the same views of the images as the network that learns
(consistent teaching, arXiv 2106.05237).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visq import parallel
from visq.calibrate.learners.augment import check_views, views
from visq.calibrate.learners.base import NetworkLearner, NetworkRun, register
from visq.calibrate.learners.dropping import check_share, dropping
from visq.calibrate.learners.reconstruction import gather, relative_error, split
from visq.errors import VisqError
from visq.files import replacing
from visq.models.stage import alike
from visq.quant.half import round_parameters
from visq.quant.quantizer import Quantizer
from visq.quant.site import INNER, WEIGHT, bake_weights, named_sites, without_codes

#: The largest norm of a step's gradient.
CLIP = 1.0
_MOMENTS = ("exp_avg", "exp_avg_sq")


@register("distill")
class Distill(NetworkLearner):
    """Learns all parameters and the steps of all quantizers outside the recurrences, by the network's outputs.

    Weights are learned through their rounding, straight through, and steps in the log domain. Zero points stay, and so
    do the scales of Abar, Bbar and h, to which `ops.quantized_scan` has no gradient. The loss is KL(FP32 || quantized)
    of the logits; for a network without classes it is the squared error of its outputs. With `blocks`, the relative
    squared errors of what the stages hand on are averaged and added. The best state by held-back calibration images is
    kept, the initial state included. A killed run goes on from its last epoch and ends in the same bytes.

    Arguments:
        epochs, batch: passes over the training images, images per step.
        at_once: images per forward and backward pass. Memory grows with them (a Vim-Tiny: 1 GB an image), and the
            gradients of a step add up over its passes.
        lr: AdamW's rate for parameters; it falls along a cosine.
        lr_scale: the rate for logarithms of steps, that is, their relative change.
        holdout: share of the calibration images that is never trained on and chooses the best state.
        blocks: the weight of the stages' errors in the loss.
        mirror, crop: how training images are changed (`views`); held-back images stay as they are.
        drop: share of the activations' codes that each pass leaves out at random (`dropping`).
        average: decay of the exponential average, over steps, that is judged and kept in the place of the last values;
            it is less in the first steps, (1 + n) / (10 + n), and 0 keeps the last values.
    """

    def __init__(
        self,
        epochs: int = 10,
        lr: float = 3e-4,
        lr_scale: float = 3e-3,
        batch: int = 16,
        holdout: float = 0.125,
        at_once: int = 4,
        blocks: float = 0.0,
        mirror: float = 0.0,
        crop: float = 0.0,
        drop: float = 0.0,
        average: float = 0.0,
    ) -> None:
        if epochs < 0 or batch < 1 or at_once < 1 or not 0 <= holdout < 1:
            got = f"{epochs}, {batch}, {at_once}, {holdout}"
            raise VisqError(f"distill needs epochs >= 0, batch and at_once >= 1 and 0 <= holdout < 1, got {got}")
        if blocks < 0:
            raise VisqError(f"distill needs blocks >= 0, got {blocks}")
        check_share("distill", drop)
        check_views("distill", mirror, crop)
        if not 0 <= average < 1:
            raise VisqError(f"distill needs 0 <= average < 1, got {average}")
        self.epochs, self.batch, self.holdout, self.at_once = epochs, batch, holdout, at_once
        self.blocks, self.mirror, self.crop = blocks, mirror, crop
        self.drop, self.average = drop, average
        self.lr, self.lr_scale = lr, lr_scale

    def tune(self, run: NetworkRun) -> None:
        data = gather(run.teacher.batches())
        training, held_back = split(len(data[0]), self.holdout, run.seed)
        student = Student(run.model)
        groups: list[dict[str, Any]] = [
            {"params": list(student.parameters.values())},
            {"params": list(student.log_scales.values())},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        descent = Descent(run.folder / "distill.safetensors", student, optimizer)
        if not descent.resume(averaged=self.average > 0):
            descent.add(self.evaluate(run, student, data, held_back))
            descent.average = student.values() if self.average > 0 else {}
        while len(descent.losses) <= self.epochs and math.isfinite(descent.losses[-1]):
            epoch = len(descent.losses)
            finite = self.run_epoch(epoch, run, descent, data, training)
            with student.holding(descent.average):
                descent.add(self.evaluate(run, student, data, held_back) if finite else math.nan)
            parallel.on_rank_zero(descent.save)
            falls = f"{descent.losses[0]:.3g} -> {descent.losses[-1]:.3g}"
            run.report(f"distilling, epoch {epoch} of {self.epochs} (held-back loss {falls})")
        student.load(descent.best)
        student.finish()
        if not math.isfinite(descent.losses[-1]):
            run.notes.append(f"distill: NaN or Inf in epoch {len(descent.losses) - 1}; the best state is kept")
        elif len(descent.losses) > 1 and min(descent.losses) == descent.losses[0]:
            run.notes.append("distill: the held-back loss did not fall; the network is as it was before")

    def run_epoch(
        self,
        epoch: int,
        run: NetworkRun,
        descent: Descent,
        data: tuple[Tensor, ...],
        training: Tensor,
    ) -> bool:
        """Takes one pass over the training images; returns whether loss and gradient were finite all the time.

        Random numbers follow from the seed and the epoch, which counts from 1.
        """
        images, logits = data
        student, optimizer = descent.student, descent.optimizer
        sites = [site for _, site in named_sites(run.model)]
        generator = torch.Generator().manual_seed(run.seed * 2**32 + zlib.crc32(f"distill {epoch}".encode()))
        parts = training[torch.randperm(len(training), generator=generator)].split(self.batch)
        for index, part in enumerate(parts):
            done = (epoch - 1 + index / len(parts)) / self.epochs
            for group, rate in zip(optimizer.param_groups, (self.lr, self.lr_scale), strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * done)) / 2
            optimizer.zero_grad()
            for some in part.split(self.at_once):
                student.assign()
                seen = images[some]
                exact: list[tuple[Tensor, ...]] = [(logits[some],)]
                if self.follows:
                    seen = views(seen, self.mirror, self.crop, generator)
                    with torch.no_grad():
                        exact = outputs(run.exact, seen)
                with dropping(sites, self.drop, generator):
                    loss = self.loss(outputs(run.model, seen), exact)
                (loss * (len(some) / len(part))).backward()
            if not torch.isfinite(nn.utils.clip_grad_norm_(student.leaves().values(), CLIP)):
                return False
            optimizer.step()
            taken = (epoch - 1) * len(parts) + index
            descent.move_average(min(self.average, (1 + taken) / (10 + taken)))
        return True

    @property
    def follows(self) -> bool:
        """Whether FP32 looks at each image again; otherwise its logits, which are stored, are all that counts."""
        return bool(self.blocks or self.mirror or self.crop)

    def loss(self, found: list[tuple[Tensor, ...]], exact: list[tuple[Tensor, ...]]) -> Tensor:
        """Returns the loss of what the stages hand on, the network's outputs last."""
        loss = distance(found[-1][0], exact[-1][0])
        if self.blocks and len(found) > 1:
            errors = [stage_error(*pair) for pair in zip(found[:-1], exact[:-1], strict=True)]
            loss = loss + self.blocks * torch.stack(errors).mean()
        return loss

    @torch.no_grad()
    def evaluate(self, run: NetworkRun, student: Student, data: tuple[Tensor, ...], part: Tensor) -> float:
        """Returns the mean loss of the images that `part` indexes."""
        student.assign()
        batches = part.split(self.at_once)
        losses = [float(distance(run.model(data[0][batch]), data[1][batch])) * len(batch) for batch in batches]
        return sum(losses) / len(part)


def distance(found: Tensor, exact: Tensor) -> Tensor:
    """Returns KL(exact || found) of logits [B, classes] in nats, or the relative squared error of images."""
    if found.ndim == 2:
        logs = found.log_softmax(-1), exact.log_softmax(-1)
        return F.kl_div(*logs, log_target=True, reduction="batchmean")
    return relative_error(found, exact)


def stage_error(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> Tensor:
    """Returns the relative squared error of what a stage hands on, the mean over its tensors."""
    pairs = zip(alike(found), alike(exact), strict=True)
    return torch.stack([relative_error(*pair) for pair in pairs]).mean()


def outputs(model: nn.Module, images: Tensor) -> list[tuple[Tensor, ...]]:
    """Returns what each stage hands on; the last one's first tensor is the network's output."""
    state: tuple[Tensor, ...] = (images,)
    found = []
    for stage in model.stages():  # type: ignore[operator]
        state = stage.forward(*state)
        found.append(state)
    return found


class Student:
    """The leaves of a quantized network: its parameters, and the logarithms of its quantizers' scales.

    Parameters that were baked are learned from their decoded codes on.

    Attributes:
        parameters, log_scales: by the name of the parameter or of the site.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        model.requires_grad_(True)
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.quantizers: dict[str, Quantizer] = {}
        for name, site in named_sites(model):
            if site.kind == WEIGHT:
                site.baked = False
            if site.kind != INNER and isinstance(site.quantizer, Quantizer):
                self.quantizers[name] = site.quantizer
        self.log_scales = {name: q.scale.log().requires_grad_() for name, q in self.quantizers.items()}

    def leaves(self) -> dict[str, Tensor]:
        """Returns what is learned, by name."""
        found: dict[str, Tensor] = {f"parameter/{name}": x for name, x in self.parameters.items()}
        return found | {f"log_scale/{name}": x for name, x in self.log_scales.items()}

    def assign(self) -> None:
        """Writes the scales into the quantizers, as functions of their logarithms."""
        for name, quantizer in self.quantizers.items():
            quantizer.scale = self.log_scales[name].exp()

    def values(self) -> dict[str, Tensor]:
        """Returns copies of all leaves by name."""
        return {name: leaf.detach().clone() for name, leaf in self.leaves().items()}

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Writes what `values` returned into the leaves."""
        for name, leaf in self.leaves().items():
            leaf.copy_(values[name])

    @contextmanager
    def holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Writes `values` into the leaves within the block; none leave them as they are."""
        if not values:
            yield
            return
        before = self.values()
        self.load(values)
        try:
            yield
        finally:
            self.load(before)

    @torch.no_grad()
    def finish(self) -> None:
        """Bakes the weights, and rounds what has no codes to float16."""
        self.assign()
        bake_weights(self.model)
        quantized = ((name, site) for name, site in named_sites(self.model) if site.quantizer is not None)
        round_parameters(parameter for _, parameter in without_codes(self.model, quantized))
        self.model.requires_grad_(False)


class Descent:
    """Keeps the progress of a descent, in one file that is replaced as a whole.

    Attributes:
        losses: held-back losses, the initial state's first.
        best: the values of the student with the smallest of them.
        average: the exponential average of the student's values; empty where there is none.
    """

    def __init__(self, path: Path, student: Student, optimizer: torch.optim.AdamW) -> None:
        self.path, self.student, self.optimizer = path, student, optimizer
        self.losses: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}

    @torch.no_grad()
    def move_average(self, decay: float) -> None:
        """Moves the average towards the student as it is."""
        leaves = self.student.leaves()
        for name, value in self.average.items():
            value.lerp_(leaves[name], 1 - decay)

    def add(self, loss: float) -> None:
        """Notes the held-back loss of the student as it is, and keeps the student if none was smaller."""
        if not self.losses or loss < min(self.losses):
            self.best = self.student.values()
        self.losses.append(loss)

    def save(self) -> None:
        tensors = {f"now/{name}": x for name, x in self.student.values().items()}
        tensors |= {f"best/{name}": x for name, x in self.best.items()}
        tensors |= {f"average/{name}": x for name, x in self.average.items()}
        steps: dict[str, float] = {}
        for name, leaf in self.student.leaves().items():
            for moment in _MOMENTS if leaf in self.optimizer.state else ():
                tensors[f"{moment}/{name}"] = self.optimizer.state[leaf][moment]
                steps[name] = float(self.optimizer.state[leaf]["step"])
        meta = {"losses": json.dumps(self.losses), "steps": json.dumps(steps)}
        with replacing(self.path) as temporary:
            save_file({name: x.cpu().contiguous() for name, x in tensors.items()}, temporary, meta)

    def resume(self, averaged: bool) -> bool:
        """Reads the file of a killed run; returns whether there was one. `averaged`: it holds an average."""
        if not self.path.exists():
            return False
        try:
            with safe_open(self.path, framework="pt") as file:
                meta = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            self.losses, steps = json.loads(meta["losses"]), json.loads(meta["steps"])
            now, self.best, average = (
                {name.removeprefix(part): x for name, x in tensors.items() if name.startswith(part)}
                for part in ("now/", "best/", "average/")
            )
            leaves = self.student.leaves()
            self.average = {name: average[name].to(leaves[name].device) for name in leaves} if averaged else {}
            self.student.load(now)
            for name, leaf in leaves.items():
                if name in steps:
                    moments = {moment: tensors[f"{moment}/{name}"].to(leaf.device) for moment in _MOMENTS}
                    self.optimizer.state[leaf] = {"step": torch.tensor(steps[name]), **moments}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise VisqError(f"{self.path} is damaged; delete {self.path.parent} and start again") from error
        return True
