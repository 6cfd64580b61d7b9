"""Says in words and rows which sites were kept high, and what each kind of site costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from visq.search.groups import KINDS, Group
from visq.search.recipe_file import most_frequent
from visq.search.sensitivity import pair_width

Losses = Mapping[Group, Mapping[int, float]]


def kept_high(groups: Sequence[Group], choice: Sequence[int], losses: Losses) -> list[dict[str, Any]]:
    """Returns a row for every group above the usual width of its kind, the most sensitive first.

    `loss` is the divergence that the group alone causes at the width `at`; `times` is that over the median of its kind;
    `saved` is the divergence that the width saves beside the usual one.
    """
    rows = []
    for kind in KINDS:
        own = [(group, width) for group, width in zip(groups, choice, strict=True) if group.kind == kind]
        usual = most_frequent([width for _, width in own])
        middle = statistics.median([losses[group][pair_width(losses[group])] for group, _ in own]) if own else 0.0
        for group, width in own:
            if width > usual:
                at = pair_width(losses[group])
                loss = losses[group][at]
                rows.append(
                    {
                        "sites": list(group.sites),
                        "kind": kind,
                        "width": width,
                        "usual": usual,
                        "at": at,
                        "loss": loss,
                        "times": loss / middle if middle else None,
                        "saved": losses[group][usual] - losses[group][width],
                    }
                )
    return sorted(rows, key=lambda row: (-row["saved"], row["sites"][0]))


def because(row: Mapping[str, Any]) -> str:
    """Returns the reason of one row of `kept_high`."""
    times = "" if row["times"] is None else f", {row['times']:.1f} times the median of its kind"
    return f"{row['loss']:.2g} nats at {row['at']} bits{times}; {row['usual']} bits would cost {row['saved']:.2g} more"


def by_kind(groups: Sequence[Group], choice: Sequence[int], losses: Losses, kind_of: Any) -> list[dict[str, Any]]:
    """Returns a row for each kind of site: how many groups, their loss at each width in all, their mean width.

    Arguments:
        kind_of: a site's name -> its name without layer and direction.
    """
    kinds: dict[str, list[tuple[Group, int]]] = {}
    for group, width in zip(groups, choice, strict=True):
        names = sorted({kind_of(name) for name in group.sites})
        kinds.setdefault(" + ".join(names), []).append((group, width))
    rows = []
    for kind, own in kinds.items():
        widths = sorted(losses[own[0][0]])
        rows.append(
            {
                "kind": kind,
                "bits": own[0][0].kind,
                "groups": len(own),
                "loss": {str(width): sum(losses[group][width] for group, _ in own) for width in widths},
                "mean_width": statistics.mean(width for _, width in own),
            }
        )
    return sorted(rows, key=lambda row: -row["loss"][str(pair_width({int(w): 0.0 for w in row["loss"]}))])
