"""Comparisons: the Pareto front, the pick, and reports of `visq compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import visq.report
from tests.report.parsed import check_numbers, check_structure, parse
from visq.errors import VisqError
from visq.report.compared import front, fronts, pick

ROW: dict[str, Any] = {
    "model": "vim_nano_fmnist", "recipe": "fp32", "scope": "none", "weight_bits": 32, "activation_bits": 32,
    "state_bits": 32, "backend": "fp32", "n": 100, "top1": 92.0, "drop": 0.0, "bytes": 1769512, "p_value": 1.0,
    "sites_quantized": 0, "sites_targeted": 0, "fp32_top1": 92.0,
}  # fmt: skip


def row(recipe: str, top1: float, size: int) -> dict[str, Any]:
    few = {"scope": "full", "weight_bits": 4, "activation_bits": 4, "state_bits": 4, "backend": "int"}
    return {**ROW, **few, "recipe": recipe, "top1": top1, "drop": 92 - top1, "bytes": size, "p_value": 0.0001}


ROWS = [ROW, row("good-w8a8", 91.5, 600000), row("small-w4a4", 88.0, 400000), row("small-w4a4", 86.0, 400000)]


def test_front() -> None:
    assert front([(1, 10), (2, 20), (2, 19), (3, 20), (4, 30)]) == {0, 1, 4}
    assert front([(1, 1), (1, 1)]) == {0, 1}  # equal points do not beat each other
    assert front([]) == set()


def test_pick_is_the_smallest_within_a_point() -> None:
    rows = [
        {"number": 1, "drop": 0.1, "bytes": 9},
        {"number": 2, "drop": 0.9, "bytes": 5},
        {"number": 3, "drop": 1.1, "bytes": 1},
        {"number": 4, "drop": None, "bytes": 1},
    ]
    assert pick(rows) == {"number": 2, "within": True, "margin": 1.0}
    assert pick(rows[2:]) == {"number": 3, "within": False, "margin": 1.0}
    assert pick(rows[3:]) is None


def test_fronts_use_what_every_row_has() -> None:
    rows = [{"number": 1, "top1": None, "agreement": 90.0, "bytes": 5, "ms": 1.0}]
    assert [(f["cost"], f["gain"]) for f in fronts(rows)] == [("bytes", "agreement"), ("ms", "agreement")]
    assert [(f["cost"], f["gain"]) for f in fronts([{**rows[0], "top1": 80.0, "ms": None}])] == [("bytes", "top1")]
    assert fronts([{**rows[0], "agreement": None}]) == []


def test_a_comparison_becomes_a_page(tmp_path: Path) -> None:
    source = tmp_path / "compare.json"
    source.write_text(json.dumps({"rows": ROWS, "machine": {"cores": 2}, "versions": {"torch": "2.13.0"}}))
    document = visq.report.write(source, tmp_path / "page.html")
    rows = document["comparison"]["rows"]
    assert [r["name"].removeprefix("vim_nano_fmnist ") for r in rows] == ["fp32", "good-w8a8", "small-w4a4"]
    assert [(r["seeds"], r["top1"]) for r in rows] == [(1, 92.0), (1, 91.5), (2, 87.0)]
    assert rows[2]["top1_deviation"] == pytest.approx(2**0.5, rel=1e-5) and rows[0]["drop"] is None
    root = parse((tmp_path / "page.html").read_text())
    check_structure(root)
    check_numbers(root, document)
    assert root.all("h1")[0].text() == "Comparison compare.json"
    lead = next(p for p in root.all("p") if p.attributes.get("class") == "lead").text()
    assert lead.startswith("The smallest within 1 point of FP32 is vim_nano_fmnist good-w8a8: top-1 91.50 %")
    assert "top-1 in % against size in MB" in [title.text() for title in root.all("title")]
    filled = [c for c in root.all("circle") if c.attributes["class"] == "filled"]
    assert len(filled) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1, 2]", "it has no list `rows`"),
        ('{"rows": []}', "`rows` is empty"),
        ('{"rows": [3]}', "rows[0] is not an object"),
        ('{"rows": [{"model": "a"}]}', "rows[0].recipe is missing or of another type"),
        (json.dumps({"rows": [{**ROW, "top1": "92"}]}), "rows[0].top1 is missing or of another type"),
        (json.dumps({"rows": [{**ROW, "top1": True}]}), "rows[0].top1 is missing or of another type"),
        (json.dumps({"rows": [ROW]}).replace("92.0", "NaN"), "NaN is no number"),
        (json.dumps({"rows": [ROW], "machine": 3}), "machine is not an object"),
        ("not JSON", "Expecting value"),
        ("[" * 100_000, "is not a report"),
    ],
)
def test_another_shape_is_an_error(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(VisqError) as error:
        visq.report.write(tmp_path / "c.json", tmp_path / "page.html")
    assert why in str(error.value) and "c.json is not a report of `visq compare --json`" in str(error.value)
    assert not (tmp_path / "page.html").exists()
