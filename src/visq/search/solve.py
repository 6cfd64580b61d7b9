"""Chooses the width of every group: an integer program, solved to optimality by HiGHS (scipy's `milp`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visq.errors import VisqError

Array = NDArray[np.float64]

#: Seconds after which the best choice so far is taken, with the gap that is proven.
TIME_LIMIT = 120.0


#: The largest loss in the objective; HiGHS stops where no choice is better by 1e-6.
FINENESS = 1e4


@dataclass(frozen=True)
class Limit:
    """The sum of costs[g, width of g] must be at most `most`."""

    costs: Array
    most: float


@dataclass(frozen=True)
class Solution:
    """A choice: for every group the index of its width.

    Attributes:
        loss: what the model predicts for it.
        gap: how far the optimum may lie below it, relative; 0 when the choice is proven to be the best.
    """

    choice: tuple[int, ...]
    loss: float
    gap: float


def solve(
    losses: Array,
    pairs: Sequence[tuple[int, int, float]],
    limits: Sequence[Limit],
) -> Solution | None:
    """Returns the choice of smallest loss within all limits; None where there is none.

    A choice's loss is the sum of its groups' losses, and of 2 rho sqrt(loss loss') for each pair. Products of two
    choices become variables of their own, whose sums over either side are the choices (the tight linear form).

    Arguments:
        losses: [groups, widths] >= 0; infinite for a width that must not be taken.
        pairs: (group, group, rho).
    Raises:
        VisqError: scipy is not installed.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array
    except ImportError:
        raise VisqError("visq search needs scipy; install it with `pip install 'visq[search]'`") from None
    groups, widths = losses.shape
    finite = np.where(np.isfinite(losses), losses, 0.0)
    unit = (finite.max() or 1.0) / FINENESS
    crosses = [2 * rho * np.sqrt(np.outer(finite[a], finite[b])) for a, b, rho in pairs]
    objective = np.concatenate([finite.ravel(), *(cross.ravel() for cross in crosses)]) / unit
    chosen = groups * widths
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    low: list[float] = []
    high: list[float] = []

    def add(entries: list[tuple[int, float]], least: float, most: float) -> None:
        rows.extend([len(low)] * len(entries))
        columns.extend(column for column, _ in entries)
        values.extend(value for _, value in entries)
        low.append(least)
        high.append(most)

    for g in range(groups):
        add([(g * widths + w, 1.0) for w in range(widths)], 1.0, 1.0)
    for limit in limits:
        scale = max(float(np.abs(limit.costs).max()), 1e-30)
        entries = [(int(i), float(c) / scale) for i, c in enumerate(limit.costs.ravel()) if c]
        add(entries, -np.inf, limit.most / scale * (1 + 1e-12))
    for index, (a, b, _) in enumerate(pairs):
        start = chosen + index * widths * widths
        for w in range(widths):
            add([(start + w * widths + v, 1.0) for v in range(widths)] + [(a * widths + w, -1.0)], 0.0, 0.0)
            add([(start + v * widths + w, 1.0) for v in range(widths)] + [(b * widths + w, -1.0)], 0.0, 0.0)
    size = len(objective)
    upper = np.ones(size)
    upper[:chosen] = np.isfinite(losses).ravel()
    matrix = coo_array((values, (rows, columns)), shape=(len(low), size)).tocsr()
    with quiet():
        found = milp(
            objective,
            integrality=(np.arange(size) < chosen).astype(int),
            bounds=Bounds(np.zeros(size), upper),
            constraints=LinearConstraint(matrix, low, high),
            options={"time_limit": TIME_LIMIT, "mip_rel_gap": 0.0},
        )
    if found.x is None:
        return None
    choice = filled(found.x[:chosen].reshape(groups, widths).argmax(1).tolist(), losses, limits)
    return Solution(choice, total(choice, losses, pairs), float(found.mip_gap or 0.0))


def filled(choice: list[int], losses: Array, limits: Sequence[Limit]) -> tuple[int, ...]:
    """Returns a choice whose limits leave no room to put a group up: bits that cost nothing are spent.

    The loss never grows, because it falls with every width and pairs add to it.
    """
    everyone = np.arange(len(choice))
    for g in sorted(range(len(choice)), key=lambda g: -losses[g, choice[g]]):
        while choice[g] + 1 < losses.shape[1]:
            choice[g] += 1
            if any(limit.costs[everyone, choice].sum() > limit.most * (1 + 1e-12) for limit in limits):
                choice[g] -= 1
                break
    return tuple(choice)


@contextmanager
def quiet() -> Iterator[None]:
    """Drops what is printed below Python in a `with` block: HiGHS 1.12 reports a repaired solution on stdout, where
    the JSON may go."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def total(choice: Sequence[int], losses: Array, pairs: Sequence[tuple[int, int, float]]) -> float:
    """Returns the predicted loss of a choice."""
    own = losses[np.arange(len(choice)), list(choice)]
    return float(own.sum() + sum(2 * rho * np.sqrt(own[a] * own[b]) for a, b, rho in pairs))
