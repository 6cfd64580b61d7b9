"""Percentile clipping: the range holds a given share of the values."""

from __future__ import annotations

import torch
from torch import Tensor

from visq import parallel
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.estimators.base import Estimator, register
from visq.quant.quantizer import Quantizer
from visq.quant.scales import usable

BINS = 4096


@register("percentile")
class Percentile(Estimator):
    """Clips the tails: `percentile` of the values of each group lie inside the range.

    Arguments:
        percentile: in percent, 50 < percentile <= 100; for a symmetric spec of |x|, otherwise of both tails.
    """

    passes = 2

    def __init__(self, spec: Spec, kind: str, smooth: Tensor | None = None, percentile: float = 99.99) -> None:
        super().__init__(spec, kind, smooth)
        if not 50 < percentile <= 100:
            raise VisqError(f"percentile must be above 50 and at most 100, got {percentile}")
        self.percentile = percentile

    def finish_pass(self) -> None:
        if self.pass_index == 0:
            self.labels = self.groups()
            self.low, self.high = self.group_range(self.labels)
            self.histogram = self.low.new_zeros(self.low.numel(), BINS, dtype=torch.double)

    def observe_pass(self, x: Tensor) -> None:
        index = self.labels if self.labels is not None else torch.arange(self.low.numel(), device=x.device)
        if self.axis is None:
            group = x.new_zeros(1, 1, 1, dtype=torch.long)
        else:
            group = index.view(1, -1, 1) if self.row_axis else index.view(1, 1, -1)
        per_unit = BINS / usable(self.high - self.low)
        bins = (x - self.low[group]).mul_(per_unit[group]).long().clamp_(0, BINS - 1).add_(group * BINS)
        for counts in parallel.each(torch.bincount(bins.flatten(), minlength=self.histogram.numel())):
            self.histogram += counts.view_as(self.histogram)

    def result(self) -> Quantizer:
        width = (self.high - self.low) / BINS
        edges = self.low[:, None] + width[:, None] * torch.arange(BINS + 1, device=width.device)
        share = self.histogram / self.histogram.sum(1, keepdim=True).clamp_min(1)
        if self.spec.symmetric:
            magnitude = torch.maximum(edges[:, :-1].abs(), edges[:, 1:].abs())
            order = magnitude.argsort(dim=1)
            inside = share.gather(1, order).cumsum(1)
            first = (inside < self.percentile / 100 - 1e-12).sum(1).clamp_max(BINS - 1)
            limit = magnitude.gather(1, order).gather(1, first[:, None])[:, 0]
            return self.make(-limit, limit, self.labels)
        tail = (1 - self.percentile / 100) / 2 + 1e-12
        cumulative = share.cumsum(1)
        low = edges.gather(1, (cumulative < tail).sum(1, keepdim=True).clamp_max(BINS))[:, 0]
        high = edges.gather(1, (cumulative < 1 - tail).sum(1, keepdim=True).add(1).clamp_max(BINS))[:, 0]
        return self.make(low, high, self.labels)
