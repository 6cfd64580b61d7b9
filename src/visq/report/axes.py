"""Axes of charts: values to positions, and ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Maps low..high to start..end.

    Attributes:
        low, high: values at the ends; both positive on a logarithmic axis.
        start, end: positions in the drawing.
        log: whether equal distances are equal factors.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the position of a value, kept inside the axis."""
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        share = 0.0 if high == low else (value - low) / (high - low)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Returns (position, label) of about `count` round values."""
        if not self.low < self.high:
            return []
        values = decades(self.low, self.high, count) if self.log else rounds(self.low, self.high, count)
        return [(self(value), f"{value:.6g}") for value in values]

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.log else value


def linear(values: Sequence[float], start: float, end: float, *, zero: bool = False, count: int = 5) -> Axis:
    """Returns an axis over the values whose ends are round.

    Arguments:
        zero: the axis holds 0.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = (low - 0.5, high + 0.5) if not zero else (low, high + 1.0)
    step = round_step(low, high, count)
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end)


def logarithmic(values: Sequence[float], start: float, end: float) -> Axis:
    """Returns a logarithmic axis over the positive values, from one power of ten to another."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive)) + 1e-9), math.ceil(math.log10(max(positive)) - 1e-9)
    return Axis(10.0**low, 10.0 ** max(high, low + 1), start, end, log=True)


def round_step(low: float, high: float, count: int) -> float:
    """Returns 1, 2 or 5 times a power of ten, so that about `count` steps lie between low and high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def rounds(low: float, high: float, count: int) -> list[float]:
    """Returns round values from low to high."""
    step = round_step(low, high, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def decades(low: float, high: float, count: int) -> list[float]:
    """Returns powers of ten from low to high, at most about `count`."""
    first, last = round(math.log10(low)), round(math.log10(high))
    stride = max(1, math.ceil((last - first) / count))
    return [10.0**power for power in range(first, last + 1, stride)]
