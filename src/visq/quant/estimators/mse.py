"""Range search by quantization error (OMSE, arXiv 1902.06822, generalized to |error|^p)."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.quant.estimators.base import Estimator, register
from visq.quant.groups import power_of_two_shifts
from visq.quant.quantizer import Quantizer
from visq.quant.spec import Spec


@register("mse")
class MSE(Estimator):
    """Shrinks each group's range towards zero in `candidates` equal steps, the full range included, and keeps the smallest sum |error|^p.

    Arguments:
        p: exponent of the error.
        candidates: number of ranges tried; candidate i keeps i/candidates of the full range.
        smallest: the smallest share of the range tried.
    """

    passes = 2

    def __init__(
        self, spec: Spec, kind: str, smooth: Tensor | None = None, p: float = 2.0, candidates: int = 100, smallest: float = 0.01
    ) -> None:
        super().__init__(spec, kind, smooth)
        if candidates < 1 or p <= 0 or not 0 < smallest <= 1:
            raise VisqError(f"mse needs candidates >= 1, p > 0 and 0 < smallest <= 1, got {candidates}, {p}, {smallest}")
        self.p = p
        self.shrink = torch.linspace(smallest, 1.0, candidates) if candidates > 1 else torch.ones(1)

    def finish_pass(self) -> None:
        if self.pass_index == 0:
            self.labels = self.groups()
            low, high = self.group_range(self.labels)
            self.candidates = [self.make(low * c, high * c, self.labels) for c in self.shrink.tolist()]
            self.error = torch.zeros(len(self.candidates), low.numel(), dtype=torch.double)

    def observe_pass(self, x: Tensor) -> None:
        groups = self.error.shape[1]
        for i, quantizer in enumerate(self.candidates):
            residual = (self.simulate(quantizer, x) - x).abs_()
            error = self.reduce(residual.square_() if self.p == 2 else residual.pow_(self.p), torch.sum).double()
            self.error[i] += error if self.labels is None else torch.zeros(groups, dtype=torch.double).index_add_(0, self.labels, error)

    def simulate(self, quantizer: Quantizer, x: Tensor) -> Tensor:
        """A candidate applied to canonical x, which is smoothed already."""
        spec = self.spec
        scale, zero = quantizer.scale, quantizer.zero_point
        if self.labels is not None:
            scale, zero = scale[self.labels], None if zero is None else zero[self.labels]
        shape = (1, 1, 1) if self.axis is None else ((1, -1, 1) if self.row_axis else (1, 1, -1))
        scale, zero = scale.view(shape), 0.0 if zero is None else zero.view(shape)
        return (x / scale).round_().add_(zero).clamp_(spec.qmin, spec.qmax).sub_(zero).mul_(scale)

    def result(self) -> Quantizer:
        best = self.error.argmin(0)
        scales = torch.stack([q.scale for q in self.candidates])
        scale = scales.gather(0, best[None])[0]
        if self.spec.granularity.power_of_two and self.labels is not None:
            scale = scale.max() * 2.0 ** -power_of_two_shifts(scale)
        zero_point = None
        if not self.spec.symmetric:
            zero_point = torch.stack([q.zero_point for q in self.candidates]).gather(0, best[None])[0]  # type: ignore[misc]
        return Quantizer(self.spec, scale, zero_point, axis=self.axis, group=self.labels, smooth=self.smooth)
