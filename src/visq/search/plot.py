"""Draws the front of a search as an SVG file that stands alone."""

from __future__ import annotations

from typing import Any

from visq.report import svg
from visq.report.axes import linear

LEFT, RIGHT, TOP, BOTTOM = 46, 350, 30, 190

STYLE = """
svg { background: #fff; font: 9px sans-serif; fill: #222 }
.tick { font-size: 8px; fill: #555 } .grid { stroke: #ddd } .front { fill: none; stroke: #00796b; stroke-width: 1.2 }
.searched { fill: #00796b } .uniform { fill: #fff; stroke: #b0521c; stroke-width: 1.5 }
.chosen { fill: none; stroke: #00796b; stroke-width: 1.5 }
"""

_UNITS = {"bytes": (1e6, "size in MB"), "bits": (1.0, "mean bits"), "ms": (1.0, "predicted ms, one thread")}


def front_svg(document: dict[str, Any]) -> str:
    """Returns a drawing of agreement with FP32 (SQNR where there are no classes) against the search's resource."""
    points, chosen = document["front"], document["chosen"]
    classes = chosen["agree"] is not None
    unit, label = _UNITS[document["resource"]]

    def worth(point: dict[str, Any]) -> float:
        value = 100 - point["drop"] if classes else point["sqnr_db"]
        return float(value or 0.0)

    across = linear([point["cost"] / unit for point in [*points, chosen]], LEFT + 8, RIGHT - 8)
    up = linear([worth(point) for point in [*points, chosen]], BOTTOM - 8, TOP)
    what = "agreement with FP32 in %" if classes else "SQNR of the outputs in dB"
    parts = svg.vertical_axis(up, LEFT, RIGHT, what) + svg.horizontal_axis(across, TOP - 8, BOTTOM, label)
    best = sorted((across(point["cost"] / unit), up(worth(point))) for point in points if point["best"])
    if len(best) > 1:
        parts.append(svg.path(best, "front"))
    for point in points:
        searched = point["name"] == "searched"
        x, y = across(point["cost"] / unit), up(worth(point))
        parts.append(svg.circle(x, y, 3, "searched" if searched else "uniform"))
        if not searched:
            parts.append(svg.text(x + 5, y + 9, point["name"], "tick"))
    parts.append(svg.circle(across(chosen["cost"] / unit), up(worth(chosen)), 6, "chosen"))
    description = (
        "Filled points are searched, hollow ones have one width for all weights and one for all activations. "
        "The line joins the points that no other beats; the ring is the chosen one."
    )
    drawn = str(svg.drawing("front", 225, f"{document['model']}: {what} against {label}", description, parts))
    head, body = drawn.split(">", 1)
    return (
        f'{head} xmlns="http://www.w3.org/2000/svg" width="720">{body}'.replace(
            "</title>", f"</title><style>{STYLE}</style>", 1
        )
        + "\n"
    )
