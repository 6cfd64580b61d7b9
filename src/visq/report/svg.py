"""Inline SVG: a drawing with a title and a description, and the few shapes charts consist of. Colours are classes."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from visq.report.axes import Axis

#: Width of every drawing [units]. The page shows 360 units at 330 to 540 pixels, so that text stays readable.
WIDTH = 360


def drawing(identity: str, height: float, title: str, description: str, parts: Sequence[Markup]) -> Markup:
    """Returns an SVG element; `identity` must be unique in the page."""
    head = Markup(
        '<svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="{i}-t {i}-d">'
        '<title id="{i}-t">{title}</title><desc id="{i}-d">{description}</desc>'
    ).format(w=WIDTH, h=number(height), i=identity, title=title, description=description)
    return head + Markup("").join(parts) + Markup("</svg>")


def number(value: float) -> str:
    """Returns a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, label: str, kind: str = "label", anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        number(x), number(y), kind, anchor, escape(label)
    )


def rect(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}"/>').format(
        number(x), number(y), number(max(width, 0.5)), number(max(height, 0.5)), kind
    )


def circle(x: float, y: float, radius: float, kind: str) -> Markup:
    return Markup('<circle cx="{}" cy="{}" r="{}" class="{}"/>').format(number(x), number(y), number(radius), kind)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(*map(number, (x1, y1, x2, y2)), kind)


def path(points: Sequence[tuple[float, float]], kind: str, closed: bool = False) -> Markup:
    steps = " L".join(f"{number(x)} {number(y)}" for x, y in points)
    return Markup('<path d="M{}{}" class="{}"/>').format(steps, "Z" if closed else "", kind)


def horizontal_axis(axis: Axis, top: float, bottom: float, label: str, count: int = 5) -> list[Markup]:
    """Returns ticks with grid lines from top to bottom, and the label below."""
    parts = []
    for x, tick in axis.ticks(count):
        parts += [line(x, top, x, bottom, "grid"), text(x, bottom + 12, tick, "tick", "middle")]
    return [*parts, text((axis.start + axis.end) / 2, bottom + 25, label, "label", "middle")]


def vertical_axis(axis: Axis, left: float, right: float, label: str, count: int = 5) -> list[Markup]:
    """Returns ticks with grid lines from left to right, and the label above."""
    parts = []
    for y, tick in axis.ticks(count):
        parts += [line(left, y, right, y, "grid"), text(left - 4, y + 4, tick, "tick", "end")]
    return [*parts, text(0, min(axis.start, axis.end) - 7, label)]
