"""Fits a codebook to a distribution: the parameters and the clip of smallest squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visq.integer.spec import Named
from visq.quant.codebook import layouts

Array = npt.NDArray[np.float64]

#: Shares of the full range tried; the rest is clipped.
CLIPS = torch.linspace(0.01, 1.0, 100).tolist()


class Distribution:
    """Holds weighted scalars, whose squared distance to a table takes O(K log n) by prefix sums.

    Arguments:
        values: [n] ascending.
        counts: [n] weights.
    """

    def __init__(self, values: Tensor, counts: Tensor) -> None:
        self.values, weights = values.double().cpu().numpy(), counts.double().cpu().numpy()
        self.prefix = np.stack([np.append(0.0, np.cumsum(weights * self.values**power)) for power in range(3)])

    def cells(self, table: Array) -> Array:
        """Returns moments 0, 1 and 2 of the values nearest to each entry of an ascending table [K], as [3, K].

        A value between two entries goes to the lower one.
        """
        edges = np.searchsorted(self.values, (table[1:] + table[:-1]) / 2, side="right")
        return np.diff(self.prefix[:, [0, *edges, self.values.size]])

    def error(self, table: Tensor) -> float:
        """Returns the sum of squared distances to the nearest entry of table [K]."""
        entries = table.double().numpy()
        mass, first, second = self.cells(entries)
        return max(0.0, float((second - 2 * entries * first + entries**2 * mass).sum()))

    def kmeans(self, start: Tensor, iterations: int = 100) -> Tensor:
        """Improves an ascending table [K] by Lloyd's algorithm; the error never rises.

        An entry that is nearest to no value stays.
        """
        table = start.double().numpy()
        for _ in range(iterations):
            mass, first, _ = self.cells(table)
            moved = np.sort(np.where(mass > 0, first / np.maximum(mass, 1e-300), table))
            if np.array_equal(moved, table):
                break
            table = moved
        return torch.from_numpy(table).float()


@dataclass(frozen=True)
class Fit:
    """A table [K] in units of the full range, the layout's parameters and clip that made it, and its summed squared
    error."""

    params: dict[str, Any]
    clip: float
    table: Tensor
    error: float


def fits(codebook: Named, bits: int, signed: bool, distribution: Distribution) -> list[list[Fit]]:
    """Returns all candidates for a distribution over [-1, 1] or [0, 1], grouped by the layout's parameters.

    Each group has one candidate a clip. `kmeans` has one candidate, which starts at the best power table and is
    therefore never worse.
    """
    if codebook.name == "kmeans":
        start = best(fits(Named(name="power"), bits, signed, distribution))
        table = distribution.kmeans(start.table)
        return [[Fit({}, 1.0, table, distribution.error(table))]]
    found = []
    for params, unit in layouts(codebook, bits, signed):
        found.append([Fit(params, clip, unit * clip, distribution.error(unit * clip)) for clip in CLIPS])
    return found


def best(candidates: list[list[Fit]]) -> Fit:
    """Returns the fit of smallest error; the first of equals."""
    return min((fit for group in candidates for fit in group), key=lambda fit: fit.error)
