"""A histogram over the floating-point numbers themselves: no range is needed beforehand, and counts do not depend
on the order of batches."""

from __future__ import annotations

import torch
from torch import Tensor

#: Bits dropped from a float32: 9 bits of the fraction stay, so that a bin spans 1/512 to 1/1024 of its value.
_SHIFT = 14
_HALF = 1 << (31 - _SHIFT)


def float_counts(x: Tensor) -> Tensor:
    """Counts of the values of x (any shape, finite float32) by sign, exponent and leading bits of the fraction,
    [2^18] int64."""
    return torch.bincount((x.contiguous().view(torch.int32) >> _SHIFT).flatten() + _HALF, minlength=2 * _HALF)


def weighted_values(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The non-empty bins of `float_counts`: (middles [n] ascending float32, counts [n] float64). The bins next to
    zero stand for zero."""
    bins = counts.nonzero()[:, 0]
    middles = (((bins - _HALF).int() << _SHIFT) | (1 << (_SHIFT - 1))).view(torch.float32)
    middles = torch.where(middles.abs() < torch.finfo(torch.float32).tiny, 0.0, middles)
    order = middles.argsort(stable=True)
    return middles[order], counts[bins[order]].double()


def weighted_quantile(values: Tensor, counts: Tensor, share: float) -> float:
    """The smallest of the ascending `values` [n] that at least `share` of the counts [n] do not exceed."""
    reached = counts.cumsum(0) >= share * counts.sum() * (1 - 1e-12)
    return float(values[int(reached.int().argmax())])
