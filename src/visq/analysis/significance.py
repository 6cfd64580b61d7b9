"""Tests whether two models differ. Counts of paired images see far smaller differences than two accuracies do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Paired:
    """Counts images that one of two models gets right alone: the first (`lost`), the second (`gained`)."""

    lost: int
    gained: int
    p_value: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Runs McNemar's exact test on first, second [n]: right or wrong, image by image."""
    lost = int((first & ~second).sum())
    gained = int((~first & second).sum())
    return Paired(lost, gained, binomial_two_sided(min(lost, gained), lost + gained))


def binomial_two_sided(k: int, n: int) -> float:
    """Returns twice the probability of at most k heads in n tosses of a fair coin, at most 1, by exact integers."""
    term = total = 1
    for i in range(1, k + 1):
        term = term * (n - i + 1) // i
        total += term
    return min(1.0, 2 * total / 2**n)
