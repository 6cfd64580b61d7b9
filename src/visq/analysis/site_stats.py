"""Measures what a quantizer does to the tensors that pass it, batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visq.quant.histogram import float_counts, weighted_values
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.rotated import RotatedQuantizer
from visq.quant.site_error import decibels

#: Bins of the histogram in the report.
BINS = 64


class SiteStats:
    """Sums up SQNR, clipping and use of the range of one quantizer.

    A value is clipped when it lies more than half a step outside what the codes reach. The range used is the span of
    the codes that occur over the span there is. A rotated quantizer is measured in its rotated coordinates.
    """

    def __init__(self, quantizer: Quantizer | StateQuantizer) -> None:
        self.quantizer = quantizer
        self.signal = self.noise = 0.0
        self.count = self.clipped = self.nonfinite = 0
        spec = quantizer.spec
        table = quantizer.table if isinstance(quantizer, Quantizer) else None
        self.first, self.last = (spec.qmin, spec.qmax) if table is None else (0, table.numel() - 1)
        self.lowest, self.highest = self.last, self.first
        self.counts = self.counts_after = torch.zeros((), dtype=torch.long)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Adds a tensor as the site receives it."""
        quantizer = self.quantizer
        if isinstance(quantizer, RotatedQuantizer):
            x = quantizer.coordinates().into(x)
            codes, decode = Quantizer.encode(quantizer, x), lambda codes: Quantizer.decode(quantizer, codes)
        else:
            codes, decode = quantizer.encode(x), quantizer.decode
        decoded = decode(codes)
        error = decoded - x
        finite = torch.isfinite(x) & torch.isfinite(error)
        self.nonfinite += x.numel() - int(finite.sum())
        self.signal += float(x.square().sum(dtype=torch.double))
        self.noise += float(error.square().sum(dtype=torch.double))
        low, second, before, high = (
            decode(torch.full_like(codes, code)) for code in (self.first, self.first + 1, self.last - 1, self.last)
        )
        below, above = low - (second - low) / 2, high + (high - before) / 2
        self.clipped += int(((x < below) | (x > above)).sum())
        self.count += x.numel()
        self.lowest, self.highest = min(self.lowest, int(codes.min())), max(self.highest, int(codes.max()))
        self.counts = self.counts + float_counts(x[torch.isfinite(x)], fraction_bits=5)
        self.counts_after = self.counts_after + float_counts(decoded[torch.isfinite(decoded)], fraction_bits=5)

    def row(self) -> dict[str, Any]:
        """Returns the site's part of the report."""
        spec = self.quantizer.spec
        return {
            "bits": spec.bits,
            "granularity": spec.granularity.kind,
            "codebook": spec.codebook.name,
            "sqnr_db": decibels(self.signal, self.noise),
            "clipped": self.clipped / max(self.count, 1),
            "nonfinite": self.nonfinite / max(self.count, 1),
            "range_used": max(0, self.highest - self.lowest) / (self.last - self.first),
            "histogram": histogram(self.counts, self.counts_after),
        }


def ladder_row(A: Tensor) -> dict[str, Any]:
    """Returns what `SiteStats.row` does, for a decay ladder's A [C, N]: the only code there is is used."""
    finite = torch.isfinite(A)
    return {
        "bits": 0,
        "granularity": "ladder",
        "codebook": "ladder",
        "sqnr_db": None,
        "clipped": 0.0,
        "nonfinite": 1 - int(finite.sum()) / A.numel(),
        "range_used": 1.0,
        "histogram": weight_histogram(A[finite], A[finite]),
    }


def histogram(before: Tensor, after: Tensor) -> dict[str, list[float]]:
    """Returns two `float_counts` in equal bins between the smallest and the largest value of both.

    Arguments:
        before, after: counts of the values as they come, and of what quantization makes of them.
    Returns:
        edges: [BINS + 1]; share, after: [BINS], of `before` and of `after`.
    """
    if not before.any() or not after.any():  # nothing but NaN and infinity
        return {"edges": [0.0] * (BINS + 1), "share": [0.0] * BINS, "after": [0.0] * BINS}
    counted = [weighted_values(counts, fraction_bits=5) for counts in (before, after)]
    low = min(float(values[0]) for values, _ in counted)
    high = max(float(values[-1]) for values, _ in counted)
    width = max(high - low, 1e-30) / BINS
    shares = []
    for values, weights in counted:
        bins = ((values - low) / width).long().clamp_(0, BINS - 1)
        share = weights.new_zeros(BINS).index_add_(0, bins, weights) / weights.sum()
        shares.append(share.tolist())
    return {"edges": [low + i * width for i in range(BINS + 1)], "share": shares[0], "after": shares[1]}


def weight_histogram(original: Tensor, quantized: Tensor) -> dict[str, list[float]]:
    """Returns the `histogram` of a weight as it was and as it is."""
    return histogram(float_counts(original, fraction_bits=5), float_counts(quantized, fraction_bits=5))
