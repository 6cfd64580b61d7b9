"""Which recipe to take: the numbers are those of benchmarks/results, and the choices follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from visq.errors import VisqError
from visq.recipes import get_recipe
from visq.recipes.needs import NEEDS, Measured, Need, need, readme_lines

ROOT = Path(__file__).parents[2]


def rows_of(measured: Measured) -> tuple[list[dict[str, Any]], float]:
    """The rows of one recipe in the file that holds it, and FP32's top-1 there."""
    found = json.loads((ROOT / "benchmarks" / "results" / measured.file).read_text())
    fp32 = next((row["top1"] for row in found["rows"] if row["recipe"] == "fp32"), found.get("fp32_top1"))
    return [row for row in found["rows"] if row["recipe"] == measured.recipe and "top1" in row], fp32


@pytest.mark.parametrize("row", NEEDS, ids=lambda row: row.key)
def test_every_number_is_in_its_file(row: Need) -> None:
    for measured in row.measured:
        rows, fp32 = rows_of(measured)
        assert rows, measured
        assert mean(fp32 - one["top1"] for one in rows) == pytest.approx(measured.lost, abs=0.005)
        assert rows[0]["bytes"] == measured.bytes
        name = (ROOT / "benchmarks" / "results" / measured.file).stem
        assert (
            measured.network.replace("vim_micro192_imagenette", "vim_micro192") in name
            or name == "matrix"
            or (measured.network == "vim_micro_imagenette" and "vim_micro_" in name)
        )


@pytest.mark.parametrize("row", NEEDS, ids=lambda row: row.key)
def test_the_recipe_exists_and_is_measured(row: Need) -> None:
    assert get_recipe(row.recipe).name == row.recipe
    assert row.measured[0].recipe == row.recipe


@pytest.mark.parametrize("key", ["8bit", "4bit", "4bit-quick"])
def test_the_choice_loses_less_than_what_it_was_chosen_among(key: str) -> None:
    """But for scopes that compare as deployments: visq-w8a8 is beside visq-w8a8-fused, half a point apart by chance."""
    row = need(key)
    own = {measured.network: measured.lost for measured in row.measured if measured.recipe == row.recipe}
    for other in row.measured:
        if other.recipe not in (row.recipe, "visq-w8a8"):
            assert own[other.network] < other.lost, other


def test_small_is_the_smallest_within_a_point() -> None:
    row = need("small")
    everything = [measured for other in NEEDS for measured in other.measured]
    for network in {measured.network for measured in row.measured if measured.recipe == row.recipe}:
        inside = [m for m in everything if m.network == network and m.lost <= 1]
        assert min(inside, key=lambda m: m.bytes).recipe == row.recipe


def test_fast_is_the_fastest_that_was_timed() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "bench_recipes_vim_tiny.json").read_text())
    least: dict[str, float] = {}
    for row in found["rows"]:
        least[row["recipe"]] = min(*row["ms_an_image"], least.get(row["recipe"], 1e9))
    assert round(least["visq-w8a8-fused"], 1) == 11.6 and round(least["visq-w4a8-fused"], 1) == 11.6
    assert round(least["visq-w8a8"], 1) == 13.4
    assert least[need("fast").recipe] <= min(least.values()) * 1.01


def test_the_readme_has_the_table() -> None:
    text = (ROOT / "README.md").read_text()
    assert "\n".join(readme_lines()) in text


def test_an_unknown_need_lists_the_known_ones() -> None:
    with pytest.raises(
        VisqError, match=r"--for knows first, 8bit, fast, small, 4bit-quick, 4bit, baseline, not '5bit'"
    ):
        need("5bit")
