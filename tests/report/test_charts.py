"""Axes and charts."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.report.parsed import parse
from visq.report import charts
from visq.report.axes import Axis, linear, logarithmic, rounds


def test_linear_axes_end_at_round_numbers() -> None:
    axis = linear([3.2, 19.7], 170, 20, zero=True)
    assert (axis.low, axis.high) == (0, 20) and axis(0) == 170 and axis(20) == 20 and axis(10) == 95
    assert [label for _, label in axis.ticks()] == ["0", "5", "10", "15", "20"]
    assert linear([-3.0, 5.0], 0, 1, zero=True).low < -2.9
    assert linear([7.0], 0, 1)(7.0) == pytest.approx(0.5)
    assert linear([], 0, 1, zero=True).high > 0
    assert rounds(0.1, 0.5, 5) == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_logarithmic_axes_end_at_powers_of_ten() -> None:
    axis = logarithmic([0.002, 0.3], 0, 300)
    assert (axis.low, axis.high) == (0.001, 1) and axis(0.01) == pytest.approx(100)
    assert [label for _, label in axis.ticks()] == ["0.001", "0.01", "0.1", "1"]
    assert axis(0.0) == 0 and axis(50.0) == 300  # kept inside
    assert logarithmic([1.0], 0, 1).high == 10 and logarithmic([], 0, 1).low == 1
    assert len(logarithmic([1e-30, 1e8], 0, 1).ticks()) <= 7


def test_an_axis_of_one_value_is_no_division_by_zero() -> None:
    assert Axis(1, 1, 5, 9)(1) == 5 and Axis(0, 0, 5, 9).ticks() == []


def rectangles(svg: str, kind: str) -> list[dict[str, str]]:
    return [rect.attributes for rect in parse(svg).all("rect") if rect.attributes["class"] == kind]


def test_columns_have_the_height_of_their_values() -> None:
    rows = [{"name": "embed", "sqnr_db": 20.0}, {"name": "layers.0", "sqnr_db": 5.0}, {"name": "x", "sqnr_db": None}]
    svg = charts.stages("s", rows)
    heights = [float(rect["height"]) for rect in rectangles(svg, "bar")]
    assert len(heights) == 2 and heights[0] == pytest.approx(4 * heights[1])
    assert rectangles(svg, "hatched")[0]["height"] == rectangles(svg, "bar")[1]["height"]
    assert "The lowest is layers.0" in parse(svg).all("desc")[0].text()


def test_a_negative_column_hangs_below_zero() -> None:
    bars = rectangles(charts.stages("s", [{"name": "a", "sqnr_db": 4.0}, {"name": "b", "sqnr_db": -4.0}]), "bar")
    assert float(bars[0]["y"]) + float(bars[0]["height"]) == pytest.approx(float(bars[1]["y"]))


def test_stages_without_any_error_are_drawn_empty() -> None:
    assert rectangles(charts.stages("s", [{"name": "a", "sqnr_db": None}]), "bar") == []


def test_the_line_of_rounded_values_is_interrupted_by_empty_bins() -> None:
    across, up = Axis(0, 4, 0, 400), Axis(1e-4, 1, 100, 0, log=True)
    found = charts.runs([0, 1, 2, 3, 4], [0.5, 0.0, 0.25, 0.25], across, up)
    assert [points[0] for points in found] == [(0, 100), (200, 100)]
    assert [points[-1] for points in found] == [(100, 100), (400, 100)]
    assert len(found[1]) == 6


def test_a_step_that_is_not_finite_interrupts_nothing_but_its_point() -> None:
    rows = [{"name": "a", "steps": 3, "y_error": [0.1, None, 0.2], "y_worst": None}]
    rows.append({"name": "b", "steps": 3, "y_error": [None, None, None], "y_worst": None})
    svg = charts.scans("s", rows, "y", charts.named_scans(rows))
    assert len(parse(svg).all("path")) == 1


def test_the_worst_scans_are_named_and_the_scale_follows_the_errors() -> None:
    rows: list[dict[str, Any]] = [
        {"name": f"scan{i}", "steps": 4, "h_error": [0.1] * 4, "y_worst": 0.1 * 10**i} for i in range(5)
    ]
    for row in rows:
        row["y_error"] = [0.1, 0.2, row["y_worst"], 0.1]
    named = charts.named_scans(rows)
    assert named == {"scan4": 1, "scan3": 2, "scan2": 3}
    svg = charts.scans("s", rows, "y", named)
    kinds = re.findall('class="line ([a-z0-9]+)"', svg)
    assert kinds == ["faint", "faint", "dash1", "dash2", "dash3"]
    assert "logarithmic scale" in svg and "linear scale" in charts.scans("s", rows, "h", named)
