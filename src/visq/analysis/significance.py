"""Whether two models differ: paired counts on the same images see far smaller differences than two accuracies do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Paired:
    """Images only the first model gets right (`lost`), only the second (`gained`), and the p-value of no difference."""

    lost: int
    gained: int
    p_value: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """McNemar's exact test. first, second [n]: right or wrong, image by image."""
    lost = int((first & ~second).sum())
    gained = int((~first & second).sum())
    return Paired(lost, gained, binomial_two_sided(min(lost, gained), lost + gained))


def binomial_two_sided(k: int, n: int) -> float:
    """Twice the probability of at most k heads in n tosses of a fair coin, at most 1; exact integers inside."""
    term = total = 1
    for i in range(1, k + 1):
        term = term * (n - i + 1) // i
        total += term
    return min(1.0, 2 * total / 2**n)
