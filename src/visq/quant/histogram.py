"""Histograms whose bins are the leading bits of a float32.

They need no range beforehand, and counts do not depend on the order of batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Leading bits of a float32's fraction that tell bins apart: a bin spans 1/512 to 1/1024 of its value.
FRACTION_BITS = 9


def float_counts(x: Tensor, fraction_bits: int = FRACTION_BITS) -> Tensor:
    """Counts the values of x (any shape, finite float32) by sign, exponent and leading bits of the fraction.

    Returns:
        [2^(9 + fraction_bits)] int64.
    """
    half = 1 << (8 + fraction_bits)
    return torch.bincount(
        (x.contiguous().view(torch.int32) >> (23 - fraction_bits)).flatten() + half, minlength=2 * half
    )


def weighted_values(counts: Tensor, fraction_bits: int = FRACTION_BITS) -> tuple[Tensor, Tensor]:
    """Returns the non-empty bins of `float_counts`: middles [n] ascending float32, counts [n] float64.

    Bins of denormal numbers stand for zero.
    """
    bins = counts.nonzero()[:, 0]
    shift = 23 - fraction_bits
    middles = (((bins - (1 << (8 + fraction_bits))).int() << shift) | (1 << (shift - 1))).view(torch.float32)
    middles = torch.where(middles.abs() < torch.finfo(torch.float32).tiny, 0.0, middles)
    order = middles.argsort(stable=True)
    return middles[order], counts[bins[order]].double()


def weighted_quantile(values: Tensor, counts: Tensor, share: float) -> float:
    """Returns the smallest of the ascending `values` [n] that at least `share` of the counts [n] do not exceed."""
    reached = counts.cumsum(0) >= share * counts.sum() * (1 - 1e-12)
    return float(values[int(reached.int().argmax())])
