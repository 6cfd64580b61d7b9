"""Range search by quantization error (OMSE, arXiv 1902.06822, generalized to |error|^p)."""

from __future__ import annotations

import torch
from torch import Tensor

from visq import parallel
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.estimators.base import Estimator, register
from visq.quant.groups import power_of_two_shifts
from visq.quant.quantizer import Quantizer
from visq.quant.scales import usable
from visq.quant.site import WEIGHT

#: Bins of an activation's histogram. They are equally wide in sign(x) sqrt|x|, hence fine far below an outlier.
BINS = 2048


@register("mse")
class MSE(Estimator):
    """Shrinks each group's range towards zero in equal steps and takes the one of smallest sum |error|^p.

    A weight's error is summed over its elements, an activation's over a histogram of each group.

    Arguments:
        p: exponent of the error.
        candidates: number of ranges tried; candidate i keeps i/candidates of the full range.
        smallest: the smallest share of the range tried.
    """

    passes = 2

    def __init__(
        self,
        spec: Spec,
        kind: str,
        smooth: Tensor | None = None,
        p: float = 2.0,
        candidates: int = 100,
        smallest: float = 0.01,
    ) -> None:
        super().__init__(spec, kind, smooth)
        if candidates < 1 or p <= 0 or not 0 < smallest <= 1:
            raise VisqError(
                f"mse needs candidates >= 1, p > 0 and 0 < smallest <= 1, got {candidates}, {p}, {smallest}"
            )
        self.p = p
        self.shrink = torch.linspace(smallest, 1.0, candidates) if candidates > 1 else torch.ones(1)

    def finish_pass(self) -> None:
        if self.pass_index == 0:
            self.labels = self.groups()
            self.low, self.high = self.group_range(self.labels)
            self.reach = usable(torch.maximum(self.low.abs(), self.high.abs()))
            position = (torch.arange(BINS, device=self.reach.device) + 0.5) / (BINS / 2) - 1
            self.values = position * position.abs() * self.reach[:, None]
            self.counts = torch.zeros_like(self.values)

    def observe_pass(self, x: Tensor) -> None:
        if self.kind == WEIGHT and self.labels is None:
            self.values = x.reshape(self.reach.numel(), -1)
            self.counts = torch.ones(())
            return
        group = x.new_zeros(1, dtype=torch.long) if self.axis is None else self.labels
        group = torch.arange(self.reach.numel(), device=x.device) if group is None else group
        group = group.view(-1, 1) if self.row_axis else group
        position = x / self.reach[group]
        root = position.abs().sqrt_().copysign_(position)
        bins = root.add_(1).mul_(BINS / 2).long().clamp_max_(BINS - 1).add_(group * BINS)
        for counts in parallel.each(torch.bincount(bins.flatten(), minlength=self.counts.numel())):
            self.counts += counts.view_as(self.counts)

    def result(self) -> Quantizer:
        grids = [self.grid(self.low * share, self.high * share, self.labels) for share in self.shrink.tolist()]
        best = torch.stack([self.error(*grid) for grid in grids]).argmin(0)[None]
        scale = torch.stack([scale for scale, _ in grids]).gather(0, best)[0]
        if self.spec.granularity.power_of_two and self.labels is not None:
            scale = scale.max() * 2.0 ** -power_of_two_shifts(scale)
        zero_points = [zero for _, zero in grids if zero is not None]
        zero_point = torch.stack(zero_points).gather(0, best)[0] if zero_points else None
        return Quantizer(self.spec, scale, zero_point, axis=self.axis, group=self.labels, smooth=self.smooth)

    def error(self, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        """Returns the sum of |error|^p over the values of each group, [G]."""
        scale = scale[:, None]
        zero = 0.0 if zero_point is None else zero_point[:, None]
        x_hat = (self.values / scale).round_().add_(zero).clamp_(self.spec.qmin, self.spec.qmax).sub_(zero).mul_(scale)
        error = x_hat.sub_(self.values).abs_()
        error = error.square_() if self.p == 2 else error.pow_(self.p)
        return error.mul_(self.counts).sum(1)
