"""Puts everything that a search measured into one document, for JSON, the table and the plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visq.search.front import Model, Point, cost, pareto
from visq.search.groups import Group
from visq.search.judge import Verdict
from visq.search.why import by_kind, kept_high


def document(
    model: Model,
    points: Sequence[Point],
    chosen: Point,
    checked: Verdict,
    losses: dict[Group, dict[int, float]],
    *,
    resource: str,
    kind_of: Any,
) -> dict[str, Any]:
    """Returns the front, the chosen point, what it reached on its own, and the losses of all groups.

    Arguments:
        resource: what the front runs along.
        kind_of: a site's name -> its name without layer and direction.
    """
    groups = model.judge.groups
    best = pareto(points, resource)
    return {
        "front": [
            {**point.to_json(), "cost": cost(point, resource), "best": index in best}
            for index, point in enumerate(points)
        ],
        "chosen": {**chosen.to_json(), "cost": cost(chosen, resource)},
        "verified": {**vars(checked), "drop": checked.drop},
        "kept_high": kept_high(groups, chosen.choice, losses),
        "kinds": by_kind(groups, chosen.choice, losses, kind_of),
        "groups": [
            {
                "sites": list(group.sites),
                "kind": group.kind,
                "width": width,
                "loss": {str(w): loss for w, loss in losses[group].items()},
            }
            for group, width in zip(groups, chosen.choice, strict=True)
        ],
        "pairs": [{"sites": [groups[a].name, groups[b].name], "correlation": rho} for a, b, rho in model.pairs],
    }
