from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml

import visq
from visq.analysis import EngineModel, Subject, compare, coverage
from visq.analysis.report import to_json, to_markdown
from visq.artifact import load
from visq.calibrate import calibrate
from visq.data import Dataset
from visq.errors import VisqError
from visq.files import replacing
from visq.models import VisionMamba
from visq.pipeline import quantize
from visq.recipes import get_recipe

MINMAX = "minmax-w8a8"


def test_quantize_saves_what_it_returns(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    result = quantize(model, get_recipe(MINMAX), images, out=tmp_path / "a")
    x, _ = next(images.batches(24))
    loaded = load(tmp_path / "a")
    assert torch.equal(loaded(x), result.model(x))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert result.config == loaded.artifact and result.peak_rss > 0
    calibration = loaded.provenance.calibration
    assert calibration.images == 24 and calibration.seed == 0 and "/" not in calibration.data
    rows = coverage(loaded, loaded.recipe)
    assert all(row["targeted"] == row["quantized"] for row in rows)
    assert next(row for row in rows if row["kind"] == "scan.h")["kernel"]
    with pytest.raises(VisqError, match="quantized already"):
        quantize(loaded, get_recipe(MINMAX), images)


def test_killed_between_calibration_and_saving(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    recipe = get_recipe("kscaled-w4a4")
    fresh = copy.deepcopy(model)
    calibrate(copy.deepcopy(model), recipe, images, work_dir=tmp_path / "a.calibration")
    (tmp_path / ".a.partial").mkdir()
    quantize(model, recipe, images, out=tmp_path / "a", resume=True)
    quantize(fresh, recipe, images, out=tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_failures_leave_nothing(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    model.layers[0].mixer.in_proj.weight[0, 0] = float("inf")
    with pytest.raises(VisqError, match=r"layers\.0"):
        quantize(model, get_recipe(MINMAX), images, out=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_someone_else_is_not_removed(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    precious = tmp_path / "a.calibration" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("x")
    with pytest.raises(VisqError, match="in the way"):
        quantize(model, get_recipe(MINMAX), images, out=tmp_path / "a")
    assert precious.exists()


def test_what_a_kill_left_is_not_in_the_way(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    work = tmp_path / "a.calibration"
    work.mkdir()
    with replacing(work / "run.json") as temporary:
        temporary.write_text("{")
        left = temporary.name
    (work / "run.json").rename(work / left)
    quantize(model, get_recipe(MINMAX), images, out=tmp_path / "a")
    assert not work.exists()


def test_public_api(model: VisionMamba, image_folder: Path, tmp_path: Path) -> None:
    quantized = visq.quantize(model, MINMAX, str(image_folder), samples=8, seed=3, out=tmp_path / "a")
    again = visq.load(tmp_path / "a")
    first, second = visq.evaluate(quantized, str(image_folder)), visq.evaluate(again, str(image_folder))
    assert first.predictions.tolist() == second.predictions.tolist()
    assert again.provenance.calibration.images == 8 and again.provenance.calibration.seed == 3
    assert "vim_nano_fmnist" in [card.name for card in visq.list_models()]
    assert "fp32" in [recipe.name for recipe in visq.list_recipes()]


def test_compare_resumes_and_pairs(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    subject = Subject(model, images, images)
    recipes = [get_recipe("fp32"), get_recipe("minmax-w8a8-linear"), get_recipe("minmax-w2a2-linear")]
    cache = tmp_path / "rows.jsonl"
    seen: list[str] = []
    options = {"samples": 12, "seeds": (0, 1), "cache": cache}
    rows = compare([subject], recipes, on_row=lambda row: seen.append(row["recipe"]), **options)
    assert seen == [row["recipe"] for row in rows]
    assert seen == ["fp32", *["minmax-w8a8-linear"] * 2, *["minmax-w2a2-linear"] * 2]
    assert [row["seed"] for row in rows] == [None, 0, 1, 0, 1]
    for row in rows:
        assert row["fp32_top1"] == rows[0]["top1"] and row["drop"] == pytest.approx(rows[0]["top1"] - row["top1"])
        assert row["drop"] == pytest.approx(100 * (row["lost"] - row["gained"]) / row["n"])
        assert row["sites_quantized"] == row["sites_targeted"]
    assert rows[1]["weight_bits"] == 8 and rows[1]["state_bits"] == 32 and rows[0]["weight_bits"] == 32
    assert rows[3]["bytes"] < rows[1]["bytes"] and rows[1]["sites_targeted"] > 0
    assert len(cache.read_text().splitlines()) == 5

    # Killed in the middle of the last line: that one is computed again, the others are not.
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join([*lines[:-1], lines[-1][:50]]) + "\n")
    again = compare([subject], recipes, **options)
    assert [row["seconds"] for row in again[:-1]] == [row["seconds"] for row in rows[:-1]]
    assert again[-1]["seconds"] != rows[-1]["seconds"] and again[-1]["top1"] == rows[-1]["top1"]

    document = json.loads(json.dumps(to_json(rows)))
    assert set(document) == {"rows", "machine", "versions"}
    markdown = to_markdown(rows)
    assert markdown.count("\n| ") == 4 and "±" in markdown


def test_compare_on_the_engine(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    subject, recipes = Subject(model, images, images), [get_recipe(MINMAX)]
    cache = tmp_path / "rows.jsonl"
    simulated = compare([subject], recipes, samples=8, cache=cache)[1]
    fp32, deployed = compare([subject], recipes, samples=8, backend="int", cache=cache)
    assert (fp32["backend"], simulated["backend"], deployed["backend"]) == ("fp32", "sim", "int")
    assert deployed["bytes"] == simulated["bytes"] and deployed["sites_quantized"] == simulated["sites_quantized"]
    quantize(copy.deepcopy(model), recipes[0], images.subset(8, 0), out=tmp_path / "a")
    assert deployed["top1"] == visq.evaluate(EngineModel(tmp_path / "a"), images).top1
    assert "integer engine" in to_markdown([fp32, deployed]) and "integer engine" not in to_markdown([fp32, simulated])
    with pytest.raises(VisqError, match="backend 'fp32' is unknown"):
        compare([subject], recipes, samples=8, backend="fp32")


def test_compare_finds_bad_input_first(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    family = {
        "name": "odd",
        "title": "",
        "default_scope": "full",
        "scopes": {"full": {"sites": [{"match": "nothing*"}]}},
    }
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(family))
    cache = tmp_path / "rows.jsonl"
    with pytest.raises(VisqError, match="matches no site"):
        compare([Subject(model, images, images)], [get_recipe(tmp_path / "odd.yaml")], samples=4, cache=cache)
    with pytest.raises(VisqError, match="only 24"):
        compare([Subject(model, images, images)], [get_recipe(MINMAX)], samples=400, cache=cache)
    assert not cache.exists()
