"""The choices that no other beats: solved over a range of budgets, and uniform ones to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visq.search.budget import Resource, mean_bits
from visq.search.judge import Judge, Verdict
from visq.search.solve import Array, Limit, Solution, solve, total

#: Budgets between the least and the most that are solved for the front.
POINTS = 9


@dataclass(frozen=True)
class Point:
    """A choice, what it costs and what it is worth.

    Attributes:
        name: `searched`, or a uniform choice such as `w4a4`.
        choice: the width of every group.
        costs: by resource, predicted, except for the artifact's bytes.
        predicted: the loss that the model predicts.
        gap: proven distance from the best loss, relative.
    """

    name: str
    choice: tuple[int, ...]
    costs: dict[str, float]
    predicted: float
    gap: float
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.costs,
            "predicted_loss": self.predicted,
            "gap": self.gap,
            **vars(self.verdict),
            "drop": self.verdict.drop,
        }


class Model:
    """The losses, pairs and costs of a search, and how a choice is made and judged.

    Attributes:
        losses: [groups, widths].
        rows: by name of a budget's resource, its rows of costs.
    """

    def __init__(
        self,
        widths: Sequence[int],
        losses: Array,
        pairs: Sequence[tuple[int, int, float]],
        rows: dict[str, list[Resource]],
        judge: Judge,
    ) -> None:
        self.widths, self.losses, self.pairs, self.rows, self.judge = list(widths), losses, pairs, rows, judge

    def solve(self, limits: dict[str, float]) -> Solution | None:
        """Returns the best choice whose rows all stay within the limit of their resource."""
        bounds = [
            Limit(row.costs, limit - row.fixed) for resource, limit in limits.items() for row in self.rows[resource]
        ]
        return solve(self.losses, self.pairs, bounds)

    def point(self, name: str, indices: Sequence[int], gap: float = 0.0) -> Point:
        """Returns a choice of indices into the widths, measured."""
        choice = tuple(self.widths[i] for i in indices)
        verdict = self.judge(choice)
        costs = {row.name: row.of(indices) for rows in self.rows.values() for row in rows}
        means = mean_bits(self.judge.groups, self.widths)
        costs |= {
            f"{kind} bits": float(share[np.arange(len(choice)), list(indices)].sum()) for kind, share in means.items()
        }
        costs["bytes"] = float(verdict.bytes)
        return Point(name, choice, costs, total(indices, self.losses, self.pairs), gap, verdict)

    def indices(self, choice: Sequence[int]) -> list[int]:
        return [self.widths.index(width) for width in choice]


def cost(point: Point, resource: str) -> float:
    """Returns what a point costs of a resource; of bits, the mean of the kinds' means."""
    if resource == "bits":
        return float(np.mean([value for name, value in point.costs.items() if name.endswith(" bits")]))
    return point.costs[resource]


def uniform_points(model: Model, report: Callable[[Point], None]) -> list[Point]:
    """Returns the points of one width for all sites that are searched, and of one width for weights beside activations
    of the largest."""
    groups, widths = model.judge.groups, model.widths
    last = len(widths) - 1
    kinds = {group.kind for group in groups}
    found: dict[tuple[int, ...], Point] = {}
    for i, width in enumerate(widths):
        beside = [i if group.kind == "weight" else last for group in groups]
        together = [(f"w{width}a{width}", [i] * len(groups))] if len(kinds) > 1 else []
        for name, indices in (*together, (f"w{width}a{widths[last]}", beside)):
            if tuple(indices) not in found:
                found[tuple(indices)] = model.point(name, indices)
                report(found[tuple(indices)])
    return list(found.values())


def searched_points(model: Model, resource: str, report: Callable[[Point], None]) -> list[Point]:
    """Returns the best choices over a range of budgets of one resource, cheapest first."""
    rows = model.rows[resource]
    least, most = max(row.least() for row in rows), max(row.most() for row in rows)
    found: dict[tuple[int, ...], Point] = {}
    for limit in np.linspace(least, most, POINTS):
        solution = model.solve({resource: float(limit) * (1 + 1e-9)})
        if solution is not None and solution.choice not in found:
            found[solution.choice] = model.point("searched", solution.choice, solution.gap)
            report(found[solution.choice])
    return list(found.values())


def pareto(points: Sequence[Point], resource: str) -> set[int]:
    """Returns the indices of points that no other beats in cost and agreement (or SQNR where there are no classes)."""

    def worth(point: Point) -> float:
        if point.verdict.agree is not None:
            return float(point.verdict.agree)
        return -point.predicted if point.verdict.sqnr_db is None else point.verdict.sqnr_db

    order = sorted(range(len(points)), key=lambda i: (cost(points[i], resource), -worth(points[i])))
    best, kept = -np.inf, set()
    for i in order:
        if worth(points[i]) > best:
            best = worth(points[i])
            kept.add(i)
    return kept
