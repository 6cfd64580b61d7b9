"""Chooses layout and clip of non-uniform codebooks by squared error, for weights and activations outside the scan."""

from __future__ import annotations

import torch
from torch import Tensor

from visq import parallel
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.codebook_search import Distribution, best, fits
from visq.quant.estimators.base import TABLE_ESTIMATORS, Estimator, register
from visq.quant.histogram import float_counts, weighted_values
from visq.quant.quantizer import Quantizer
from visq.quant.scales import usable


@register("mse", TABLE_ESTIMATORS)
class TableMSE(Estimator):
    """Makes one table for the site, in units of each group's full range.

    It tries all of a layout's parameters, each with 100 clips, on the histogram of the values over their range.

    Integer form: the code indexes a table of at most 256 values. A product needs these as wider integers or by look-up;
    values of `two_segment` and `twin` are integers in units of their smaller step.

    Raises:
        VisqError: an asymmetric spec, negative values in an unsigned one, power-of-two groups.
    """

    passes = 2

    def __init__(self, spec: Spec, kind: str, smooth: Tensor | None = None) -> None:
        super().__init__(spec, kind, smooth)
        if not spec.symmetric or spec.granularity.power_of_two:
            raise VisqError(f"codebook {spec.codebook.name} takes symmetric specs without power-of-two groups")
        self.counts = torch.zeros((), dtype=torch.long)

    def finish_pass(self) -> None:
        if self.pass_index == 0:
            self.labels = self.groups()
            low, high = self.group_range(self.labels)
            if not self.spec.signed and float(low.min()) < 0:
                raise VisqError("the values of an unsigned site must not be negative; set signed: true")
            self.scale = usable(torch.maximum(low.abs(), high.abs()))

    def observe_pass(self, x: Tensor) -> None:
        scale = self.scale if self.labels is None else self.scale[self.labels]
        shape = (1, 1, 1) if self.axis is None else ((1, -1, 1) if self.row_axis else (1, 1, -1))
        for counts in parallel.each(float_counts(x / scale.view(shape))):
            self.counts = self.counts + counts

    def result(self) -> Quantizer:
        spec = self.spec
        distribution = Distribution(*weighted_values(self.counts))
        table = best(fits(spec.codebook, spec.bits, spec.signed, distribution)).table
        table = table.to(self.scale.device)
        return Quantizer(spec, self.scale, axis=self.axis, group=self.labels, smooth=self.smooth, table=table)
