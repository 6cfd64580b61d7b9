"""Measures how much of a tensor a quantizer loses, channel by channel."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

#: A channel of less than this share of the median channel's energy does not count.
NEGLIGIBLE = 1e-4


class Rounds(Protocol):
    """Anything with codes, such as a `Quantizer`."""

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, codes: Tensor) -> Tensor: ...


def decibels(signal: float, noise: float) -> float | None:
    """Returns 10 log10(signal / noise); None where either is 0 or not finite, because JSON has no infinity."""
    if not (0 < signal < math.inf and 0 < noise < math.inf):
        return None
    return 10 * math.log10(signal / noise)


class SiteError:
    """Sums up the rounding error of one quantizer over batches.

    The result is an SQNR in which every channel counts alike: the mean over channels of noise / signal, in dB. Over
    all elements together, a few large channels would hide that every other one is rounded to zero.
    """

    def __init__(self, quantizer: Rounds, axis: int = -1) -> None:
        """axis: where the channels of the tensor are."""
        self.quantizer, self.axis = quantizer, axis
        self.signal: Tensor = torch.zeros(())
        self.noise: Tensor = torch.zeros(())

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Adds a tensor as the site receives it."""
        error = self.quantizer.decode(self.quantizer.encode(x)) - x
        self.signal = self.signal + self._energy(x)
        self.noise = self.noise + self._energy(error)

    def sqnr_db(self) -> float:
        """Returns the SQNR [dB]: infinite where nothing was lost, NaN where something was not finite."""
        signal, noise = self.signal.flatten(), self.noise.flatten()
        if not (torch.isfinite(signal).all() and torch.isfinite(noise).all()):
            return math.nan
        counted = signal > NEGLIGIBLE * signal.median()
        ratio = float((noise[counted] / signal[counted]).sum()) / max(int(counted.sum()), 1)
        return math.inf if ratio == 0 else -10 * math.log10(ratio)

    def _energy(self, x: Tensor) -> Tensor:
        """Returns the sum of squares of every channel [C], float64."""
        return x.movedim(self.axis, -1).flatten(0, -2).square().sum(0, dtype=torch.double)


def rounding_db(quantizer: Rounds, x: Tensor) -> float:
    """Returns the SQNR [dB] of one tensor [..., channels] under a quantizer, see `SiteError`."""
    error = SiteError(quantizer)
    error.observe(x)
    return error.sqnr_db()
