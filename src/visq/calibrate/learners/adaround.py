"""Learned rounding of weights, block by block (AdaRound, arXiv 2004.10568; BRECQ, arXiv 2102.05426)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visq.calibrate.learners.base import Learner, register
from visq.calibrate.learners.reconstruction import Reconstruction, squared_distance
from visq.quant.quantizer import Quantizer
from visq.quant.rotated import RotatedQuantizer
from visq.quant.site import WEIGHT, Site, SiteQuantizer, site_parameter
from visq.stages.stage_run import StageRun

#: Stretch of the rectified sigmoid (AdaRound, eq. 23).
ZETA, GAMMA = 1.1, -0.1


@register("adaround")
class AdaRound(Learner):
    """Learns for every weight of a stage's layers whether to round it up or down, by the stage's output.

    W^ = scale (floor(W / scale) + h(V)), h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1), which starts at W / scale - floor.
    A penalty mean(1 - |2h - 1|^beta) with falling beta pushes h to 0 or 1. The weights end on the quantizers' grid, so
    that baking keeps them. What chooses the best state is the loss with h rounded; the initial state is rounding to
    nearest.

    Arguments:
        epochs, batch, holdout, drop: see `Reconstruction`.
        lr: Adam's rate for V.
        penalty: weight of the penalty's mean over all weights, in units of the initial loss.
        warmup: share of the training without penalty.
    """

    needs_student = True

    def __init__(
        self,
        epochs: int = 20,
        lr: float = 3e-2,
        batch: int = 32,
        holdout: float = 0.125,
        penalty: float = 1.0,
        warmup: float = 0.2,
        drop: float = 0.0,
    ) -> None:
        self.reconstruction = Reconstruction(epochs, batch, holdout, squared_distance, clip=float("inf"), drop=drop)
        self.lr, self.penalty, self.warmup = lr, penalty, warmup

    def tune(self, run: StageRun) -> None:
        roundings = {}
        for name, site in run.sites().items():
            quantizer = site.quantizer
            rounded = site.kind == WEIGHT and site.parameter == "weight"
            if rounded and type(quantizer) is Quantizer and quantizer.table is None:
                roundings[name] = SoftRounding(site, site_parameter(run.model, name, site), quantizer)
        if not roundings:
            return

        weights = sum(rounding.logit.numel() for rounding in roundings.values())

        def assign(training: bool) -> None:
            for rounding in roundings.values():
                rounding.hard = not training

        def penalty(progress: float) -> Tensor:
            if progress < self.warmup:
                return torch.zeros(())
            beta = 20 - 18 * (progress - self.warmup) / (1 - self.warmup)
            undecided = [(1 - (2 * rounding.up() - 1).abs().pow(beta)).sum() for rounding in roundings.values()]
            return self.penalty * torch.stack(undecided).sum() / weights

        groups = [{"params": [rounding.logit for rounding in roundings.values()], "lr": self.lr}]
        for rounding in roundings.values():
            rounding.site.quantizer = rounding
        self.reconstruction.fit(run, groups, assign, penalty).report(run, "squared error")
        for rounding in roundings.values():
            rounding.finish()


class SoftRounding(SiteQuantizer):
    """Stands in for a weight's quantizer while its rounding is learned.

    Attributes:
        logit: V, the shape of the weight; where the quantizer is rotated, of the rotated weight.
        hard: round h to 0 or 1.
    """

    def __init__(self, site: Site, weight: nn.Parameter, quantizer: Quantizer) -> None:
        super().__init__()
        self.site, self.weight, self.quantizer, self.hard = site, weight, quantizer, False
        self.rotation = quantizer.coordinates() if isinstance(quantizer, RotatedQuantizer) else None
        self.scale, self.zero_point = quantizer._along_axis(weight)
        if quantizer.smooth is not None:
            self.scale = self.scale * quantizer.smooth
        rotated = weight.detach() if self.rotation is None else self.rotation.into(weight.detach())
        position = (rotated / self.scale + self.zero_point).clamp(quantizer.spec.qmin, quantizer.spec.qmax)
        self.floor = position.floor()
        up = (position - self.floor - GAMMA) / (ZETA - GAMMA)
        self.logit = up.logit().requires_grad_()

    def up(self) -> Tensor:
        """Returns h(V): how far each weight is rounded up."""
        return (self.logit.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        up = (self.up() >= 0.5).float() if self.hard else self.up()
        spec = self.quantizer.spec
        rounded = ((self.floor + up).clamp(spec.qmin, spec.qmax) - self.zero_point) * self.scale
        return rounded if self.rotation is None else self.rotation.back(rounded)

    def finish(self) -> None:
        """Writes the rounded weight and puts the quantizer back."""
        self.hard = True
        self.weight.data = self.quantizer(self(self.weight).detach())
        self.site.quantizer = self.quantizer
