"""The charts of the page. Each takes rows of the document and returns an SVG element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from visq.report import svg
from visq.report.axes import Axis, linear, logarithmic
from visq.report.sites import badness

Row = dict[str, Any]
LEFT, RIGHT = 38.0, 352.0
#: Shares below this are drawn as none.
LEAST_SHARE = 1e-4
#: Scans that are told apart by a dash pattern and named; the others are thin.
NAMED_SCANS = 3


def stages(identity: str, rows: Sequence[Row]) -> Markup:
    """Draws the SQNR of every stage's output as columns; the lowest is hatched."""
    values = [row["sqnr_db"] for row in rows]
    known = [value for value in values if value is not None]
    axis = linear(known, 170, 22, zero=True)
    width = (RIGHT - LEFT) / len(rows)
    parts = svg.vertical_axis(axis, LEFT, RIGHT, "SQNR in dB")
    every = -(-len(rows) // 13)
    for index, (row, value) in enumerate(zip(rows, values, strict=True)):
        x, middle = LEFT + width * (index + 0.15), LEFT + width * (index + 0.5)
        if value is not None:
            top, bottom = sorted((axis(value), axis(0)))
            parts.append(svg.rect(x, top, 0.7 * width, bottom - top, "bar"))
            if value == min(known):
                parts.append(svg.rect(x, top, 0.7 * width, bottom - top, "hatched"))
        if index % every == 0:
            parts.append(svg.text(middle, 183, short(row["name"]), "tick", "middle"))
    parts.append(svg.text((LEFT + RIGHT) / 2, 197, "stage, in the order of the network", "label", "middle"))
    lowest = [row["name"] for row, value in zip(rows, values, strict=True) if known and value == min(known)]
    description = "Columns, one a stage: the higher, the smaller its error. " + (
        f"The lowest is {lowest[0]}, which is hatched. The table beside holds the numbers." if lowest else ""
    )
    return svg.drawing(identity, 204, "SQNR of each stage's output against FP32", description, parts)


def short(name: str) -> str:
    """Returns what tells a stage's name from its neighbours': its last part, or its first letters."""
    last = name.rsplit(".", 1)[-1]
    return last if last.isdecimal() else last[:5]


def histogram(identity: str, site: Row) -> Markup:
    """Draws the shares of a site's values before (area) and after rounding (line) over equal bins."""
    edges, before, after = (site["histogram"][key] for key in ("edges", "share", "after"))
    across = Axis(edges[0], edges[-1], LEFT, RIGHT)
    up = Axis(LEAST_SHARE, 1.0, 100, 18, log=True)
    parts = svg.vertical_axis(up, LEFT, RIGHT, "share of values", 2)
    outline = stairs(edges, before, across, up)
    parts.append(svg.path([(LEFT, 100), *outline, (RIGHT, 100)], "area", closed=True))
    parts += [svg.path(part, "line strong") for part in runs(edges, after, across, up)]
    parts += svg.horizontal_axis(across, 98, 100, "value", 6)
    description = (
        "The filled area is the distribution before quantization, the line that after it, both on a logarithmic scale."
    )
    return svg.drawing(identity, 130, f"Values of {site['name']} before and after quantization", description, parts)


def stairs(edges: Sequence[float], shares: Sequence[float], across: Axis, up: Axis) -> list[tuple[float, float]]:
    """Returns the outline of bins as points."""
    points = []
    for left, right, share in zip(edges, edges[1:], shares, strict=False):
        points += [(across(left), up(share)), (across(right), up(share))]
    return points


def runs(edges: Sequence[float], shares: Sequence[float], across: Axis, up: Axis) -> list[list[tuple[float, float]]]:
    """Returns the outlines of neighbouring bins that hold values; empty bins interrupt the line."""
    found: list[list[tuple[float, float]]] = []
    floor, open_run = up(0.0), False
    for left, right, share in zip(edges, edges[1:], shares, strict=False):
        if share > LEAST_SHARE:
            if not open_run:
                found.append([(across(left), floor)])
            found[-1] += [(across(left), up(share)), (across(right), up(share))]
        elif open_run:
            found[-1].append((across(left), floor))
        open_run = share > LEAST_SHARE
    if open_run:
        found[-1].append((across(edges[-1]), floor))
    return found


def scans(identity: str, rows: Sequence[Row], what: str, named: Mapping[str, int]) -> Markup:
    """Draws the relative error of h or y along every scan, the longest scan over the whole width.

    Arguments:
        what: `h` or `y`.
        named: `named_scans` of the rows.
    """
    key = f"{what}_error"
    values = [value for row in rows for value in row[key] if value is not None and value > 0]
    wide = bool(values) and max(values) > 30 * min(values)
    up = logarithmic(values, 170, 22) if wide else linear(values, 170, 22, zero=True)
    across = Axis(1, max(row["steps"] for row in rows), LEFT, RIGHT)
    parts = svg.vertical_axis(up, LEFT, RIGHT, f"relative error of {what}")
    parts += svg.horizontal_axis(across, 168, 170, "step, in scan order")
    for row in sorted(rows, key=lambda row: named.get(row["name"], 0)):
        count, last = len(row[key]), row["steps"]
        steps = [1 + (last - 1) * i / max(count - 1, 1) for i in range(count)]
        points = [(across(x), up(y)) for x, y in zip(steps, row[key], strict=True) if y is not None]
        kind = f"line dash{named[row['name']]}" if row["name"] in named else "line faint"
        if points:
            parts.append(svg.path(points, kind))
    description = (
        f"One line a scan: the norm of the error of {what} at each step over the norm of {what} in FP32, on a "
        f"{'logarithmic' if wide else 'linear'} scale. The scans with the largest error of y are named below."
    )
    return svg.drawing(identity, 200, f"Relative error of {what} along the scans", description, parts)


def named_scans(rows: Sequence[Row]) -> dict[str, int]:
    """Returns the scans with the largest error of y, numbered from 1, by name."""
    ordered = sorted(rows, key=lambda row: (-badness(row["y_worst"]), row["name"]))
    return {row["name"]: number for number, row in enumerate(ordered[:NAMED_SCANS], 1)}


def scales(identity: str, rows: Sequence[Row]) -> Markup:
    """Draws the spread of steps by kind: a bar from the smallest to the largest, a mark at the median."""
    bottom = 22.0 * len(rows) + 4
    across = logarithmic([row[key] for row in rows for key in ("smallest", "largest")], 20, RIGHT - 10)
    parts = svg.horizontal_axis(across, 0, bottom, "step between two codes")
    for index, row in enumerate(rows):
        y = 22.0 * index + 12
        first, last, middle = (across(row[key]) for key in ("smallest", "largest", "median"))
        parts.append(svg.text(8, y, row["kind"]))
        parts += [svg.rect(first, y + 3, last - first, 5, "bar"), svg.rect(middle - 1, y + 1, 2, 9, "mark")]
    description = (
        "One bar a kind of site, from its smallest to its largest step on a logarithmic scale; the mark is the median."
    )
    return svg.drawing(identity, bottom + 30, "Steps between two codes by kind of site", description, parts)


def operations(identity: str, rows: Sequence[Row]) -> Markup:
    """Draws milliseconds by kind of operation as bars."""
    bottom = 22.0 * len(rows) + 4
    across = linear([row["ms"] for row in rows], 8, RIGHT - 4, zero=True)
    parts = svg.horizontal_axis(across, 0, bottom, "ms an image, summed over threads")
    for index, row in enumerate(rows):
        y = 22.0 * index + 12
        parts += [svg.text(8, y, row["kind"]), svg.rect(8, y + 3, across(row["ms"]) - 8, 5, "bar")]
    description = "One bar a kind of operation, the longest first."
    return svg.drawing(identity, bottom + 30, "Thread time of the engine by kind of operation", description, parts)


def pareto(identity: str, front: Row) -> Markup:
    """Draws accuracy against a cost: filled numbered points that no other beats, hollow ones that one does."""
    points = front["points"]
    unit = {"bytes": 1e6, "ms": 1.0}[front["cost"]]
    label = {"bytes": "size in MB", "ms": "latency in ms"}[front["cost"]]
    gain = {"top1": "top-1 in %", "agreement": "agreement with FP32 in %"}[front["gain"]]
    across = linear([point["cost"] / unit for point in points], LEFT + 10, RIGHT - 10)
    up = linear([point["gain"] for point in points], 190, 30)
    parts = svg.vertical_axis(up, LEFT, RIGHT, gain) + svg.horizontal_axis(across, 22, 200, label)
    places = [(across(point["cost"] / unit), up(point["gain"]), point) for point in points]
    best = sorted((x, y) for x, y, point in places if point["best"])
    if len(best) > 1:
        parts.append(svg.path(best, "line front"))
    for x, y, point in sorted(places, key=lambda place: place[2]["best"]):
        parts.append(svg.circle(x, y, 8, "filled" if point["best"] else "hollow"))
        kind = "inside" if point["best"] else "beside"
        parts.append(svg.text(x, y + 3.5, str(point["number"]), kind, "middle"))
    description = (
        "One numbered point a row of the table. Filled points, joined by a dashed line, are the Pareto front: no other "
        "point is as good in both. Hollow points are beaten by another."
    )
    return svg.drawing(identity, 230, f"{gain} against {label}", description, parts)
