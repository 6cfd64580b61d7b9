"""Picks the point that a user asked for: within a budget, within a drop, or put back up until the drop is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from visq.errors import VisqError
from visq.search.budget import Budget
from visq.search.front import Model, Point, cost

#: Tries to make the artifact's bytes fit, because the recipe inside it grows with its rules.
TRIES = 6
#: Share of the groups that one round of `restored` puts up.
SHARE = 1 / 40

Say = Callable[[str], None]


def within(model: Model, budgets: Sequence[Budget], taken: float = 0.0) -> Point:
    """Returns the best point within all budgets.

    Arguments:
        taken: bytes that the finished artifact has beyond what is measured here.
    Raises:
        VisqError: no choice is within them; names the least of each.
    """
    limits = {budget.resource: budget.limit for budget in budgets}
    most_bytes = limits.get("bytes")
    if most_bytes is not None:
        limits["bytes"] = most_bytes - taken
    for _ in range(TRIES):
        solution = model.solve(limits)
        if solution is None:
            break
        point = model.point("searched", solution.choice, solution.gap)
        if most_bytes is None or point.verdict.bytes <= most_bytes - taken:
            return point
        limits["bytes"] -= point.verdict.bytes - (most_bytes - taken)
    smallest = None
    if most_bytes is not None:
        # A mixture's recipe is longer than that of one width, and may have used up what is left.
        smallest = model.point("searched", [0] * len(model.losses))
        if smallest.verdict.bytes <= most_bytes - taken and len(budgets) == 1:
            return smallest
    raise VisqError(f"no choice of bits meets {','.join(map(str, budgets))}; {least(model, budgets, smallest, taken)}")


def least(model: Model, budgets: Sequence[Budget], smallest: Point | None, taken: float) -> str:
    """Returns the least that each budget can be, in words."""
    words = []
    for budget in budgets:
        if budget.resource == "bytes" and smallest is not None:
            words.append(f"bytes={smallest.verdict.bytes + taken:.0f}")
        else:
            words.append(f"{budget.resource}={max(row.least() for row in model.rows[budget.resource]):.4g}")
    together = " each" if len(words) > 1 else ""
    return f"the least that can{together} is {', '.join(words)}"


def meets(point: Point, max_drop: float) -> bool:
    """Returns whether a point's held-out decisions differ from FP32's in at most `max_drop` percent."""
    return point.verdict.drop is not None and point.verdict.drop <= max_drop + 1e-9


def cheapest(points: Sequence[Point], max_drop: float, resource: str) -> Point:
    """Returns the cheapest point within a drop.

    Raises:
        VisqError: none is; names the least drop there is.
    """
    inside = [point for point in points if meets(point, max_drop)]
    if inside:
        return min(inside, key=lambda point: (cost(point, resource), point.predicted))
    best = min(points, key=lambda point: (point.verdict.drop or 0.0, point.predicted))
    raise VisqError(
        f"no choice of bits meets --max-drop {max_drop:g}: the least here is {best.verdict.drop:.2f} percent "
        f"({best.verdict.images - (best.verdict.agree or 0)} of {best.verdict.images} held-out images), by {best.name}"
    )


def restored(model: Model, start: Point, max_drop: float, say: Say) -> Point:
    """Returns a point within a drop: the sites that lose most by their bits go up, a few at a time.

    Raises:
        VisqError: the drop is not met with every site at the largest width.
    """
    choice, point = model.indices(start.choice), start
    while not meets(point, max_drop):
        gains = [
            model.losses[g, w] - model.losses[g, w + 1] if w + 1 < len(model.widths) else -1.0
            for g, w in enumerate(choice)
        ]
        order = [g for g in sorted(range(len(choice)), key=lambda g: -gains[g]) if gains[g] >= 0]
        if not order:
            raise VisqError(
                f"--max-drop {max_drop:g} is not met with every site at {model.widths[-1]} bits: the least is "
                f"{point.verdict.drop:.2f} percent"
            )
        up = order[: max(1, round(SHARE * len(choice)))]
        for g in up:
            choice[g] += 1
        point = model.point("restored", choice)
        names = ", ".join(model.judge.groups[g].name for g in up[:3])
        say(f"  put up {names}{' ...' * (len(up) > 3)}: {point.verdict.drop:.2f} % decided otherwise")
    return point
