"""A search on a tiny network: what it costs, what it writes, what it says, how it goes on."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
import yaml

from tests.search.conftest import Case
from visq import pipeline
from visq.artifact import artifact_bytes, save, serialize
from visq.data import Dataset
from visq.data.dataset import mixed
from visq.errors import VisqError
from visq.quant.site import named_sites
from visq.recipes import get_recipe
from visq.search import Budget, Search, parse_budget, run, search
from visq.search.groups import find_groups, kinds_of
from visq.search.plot import front_svg
from visq.search.quantizers import calibrate_widths
from visq.search.run import without_learners
from visq.search.sensitivity import Probe, divergence
from visq.search.state import MEASURED, Measurements


def test_the_recipe_is_an_ordinary_one(case: Case, tmp_path: Path) -> None:
    """What is written quantizes every site at the width that the search says."""
    path = tmp_path / "searched.yaml"
    path.write_text(case.found.text)
    recipe = get_recipe(path)
    specs = recipe.resolve(name for name, _ in named_sites(case.model))
    for group in case.found.document["groups"]:
        assert {specs[name].bits for name in group["sites"]} == {group["width"]}
    base = case.base.resolve(name for name, _ in named_sites(case.model))
    assert specs.keys() == base.keys()
    for name, spec in specs.items():
        assert spec.model_copy(update={"bits": 8}) == base[name].model_copy(update={"bits": 8})
    assert yaml.safe_load(case.found.text)["base"] == "omse"


def test_sensitivity_is_measured_on_drawn_images(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first images of a set are of one class where it lies in the order of its classes."""
    seen: list[Dataset] = []

    def stop(library: object, groups: object, images: Dataset, batch_size: int) -> None:
        seen.append(images)
        raise InterruptedError

    monkeypatch.setattr("visq.search.run.Probe", stop)
    with pytest.raises(InterruptedError):
        case.search(tmp_path / "state", probed=4)
    drawn, first = case.images.subset(4, case.wanted.seed), case.images.select(range(4))
    assert seen[0].fingerprint() == drawn.fingerprint() != first.fingerprint()


def test_searches_of_the_base_recipe_see_drawn_images(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Dataset] = []

    def stop(folder: Path, images: Dataset, batch_size: int) -> None:
        seen.append(images)
        raise InterruptedError

    monkeypatch.setattr("visq.search.quantizers.write_images", stop)
    images = case.images.select(list(range(8)) * 9)  # more than the recipe's 64
    for base in ("kscaled-w8a8", "omse-w8a8"):
        with pytest.raises(InterruptedError):
            calibrate_widths(case.model, get_recipe(base), images, (8,), folder=tmp_path / base, batch_size=8, seed=3)
    assert seen[0].labels == mixed(images, 64, seed=3).labels != images.labels and seen[1] is images


def test_the_budget_holds(case: Case) -> None:
    chosen = case.found.document["chosen"]
    assert max(chosen[f"{kind} bits"] for kind in ("weight", "activation", "state")) <= 5 + 1e-9
    assert chosen["weight bits"] > 4 and chosen["activation bits"] > 4


def test_bytes_are_those_of_the_artifact(case: Case, tmp_path: Path) -> None:
    """Predicted without calibrating the choice, and with packing's own arithmetic for the codes."""
    chosen, document = case.found.document["chosen"], case.found.document
    result = pipeline.quantize(
        copy.deepcopy(case.model), case.found.recipe, case.images, held_out=case.held_out, out=tmp_path / "a"
    )
    assert artifact_bytes(tmp_path / "a") == document["verified"]["bytes"]
    assert abs(chosen["bytes"] - document["verified"]["bytes"]) <= 64
    found = case.search(tmp_path / "state", budgets=(Budget("bytes", 1e9),))
    sizes = {w: next(p for p in found.document["front"] if p["name"] == f"w{w}a8")["bytes"] for w in (3, 5, 8)}
    codes = {
        width: sum(
            -(-site_numel(result.model, name) * width // 8)
            for name, kind in kinds_of(case.base, [n for n, _ in named_sites(case.model)]).items()
            if kind == "weight"
        )
        for width in (3, 5, 8)
    }
    for width in (3, 5):
        assert abs((sizes[8] - sizes[width]) - (codes[8] - codes[width])) <= 96  # digits in config.json


def site_numel(model: torch.nn.Module, name: str) -> int:
    owner, _, site = name.rpartition(".")
    module = model.get_submodule(owner)
    return int(getattr(module, getattr(module, f"site_{site}").parameter).numel())


def test_the_loss_is_that_of_a_network_with_those_sites_alone(case: Case, tmp_path: Path) -> None:
    model = copy.deepcopy(case.model)
    library = calibrate_widths(
        model, without_learners(case.base), case.images, (3, 8), folder=tmp_path, batch_size=4, seed=0
    )
    batch = next(case.images.batches(8))[0]
    groups = find_groups(case.model, case.base, batch[:1])
    probe = Probe(library, groups, case.images, 4)
    group = next(group for group in groups if group.name == "layers.0.mixer.in_proj.weight")
    by_hand = copy.deepcopy(library.model)
    for name, site in named_sites(by_hand):
        if name in group.sites:
            site.quantizer = library.quantizers[3][name]
    with torch.no_grad():
        expected = divergence(by_hand(batch), library.model(batch))
    assert probe({group: 3}) == pytest.approx(expected, rel=1e-5) and expected > 0
    assert probe({group: 3}) > probe({group: 8})
    assert all(site.quantizer is None for _, site in named_sites(library.model))


def test_divergence_is_kullback_leibler() -> None:
    exact, found = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.5, 1.0, 1.5]])
    p, q = exact.softmax(-1), found.softmax(-1)
    assert divergence(found, exact) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-6)
    assert divergence(exact, exact) == 0


def test_another_budget_measures_nothing_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(Probe, "__call__", refuse)
    found = case.search(case.folder, budgets=(Budget("bits", 6.0),))
    assert found.document["chosen"]["weight bits"] <= 6 + 1e-9
    assert [g["loss"] for g in found.document["groups"]] == [g["loss"] for g in case.found.document["groups"]]


@pytest.mark.parametrize("after", [3, 60])
def test_an_interrupted_search_ends_in_the_same_bytes(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Stopped in the middle of a line, and while stages are calibrated."""
    calls = 0
    append = Measurements._append

    def stop(self: Measurements, text: str) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            append(self, text[: len(text) // 2])
            raise KeyboardInterrupt
        append(self, text)

    folder = tmp_path / "state"
    monkeypatch.setattr(Measurements, "_append", stop)
    with pytest.raises(KeyboardInterrupt):
        case.search(folder)
    if after == 3:
        (folder / "stage-003.safetensors").unlink(missing_ok=True)  # as if it had been killed before
        for stage in folder.glob("stage-*.safetensors"):
            stage.unlink()
    monkeypatch.setattr(Measurements, "_append", append)
    found = case.search(folder)
    assert found.text == case.found.text
    assert json.dumps(found.document) == json.dumps(case.found.document)


def test_a_folder_of_another_search_is_refused(case: Case) -> None:
    with pytest.raises(VisqError, match="holds a search with another bits"):
        case.search(case.folder, widths=(4, 8))
    with pytest.raises(VisqError, match="holds a search with another kind of budget"):
        case.search(case.folder, budgets=(Budget("bytes", 1e6),))


def test_a_folder_of_something_else_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(VisqError, match="is in the way"):
        case.search(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_budget_that_cannot_be_met_names_the_least(case: Case, tmp_path: Path) -> None:
    with pytest.raises(VisqError, match=r"no choice of bits meets bits=2.5; the least that can is bits=3$"):
        case.search(case.folder, budgets=(Budget("bits", 2.5),))
    with pytest.raises(VisqError, match=r"no choice of bits meets bytes=1000; the least that can is bytes=(\d+)$") as e:
        case.search(tmp_path / "state", budgets=(Budget("bytes", 1000.0),))
    least = float(str(e.value).rpartition("=")[2])
    found = case.search(tmp_path / "state", budgets=(Budget("bytes", least + 64),))
    assert found.document["verified"]["bytes"] <= least + 64


def test_max_drop_takes_the_cheapest_that_decides_alike(case: Case, tmp_path: Path) -> None:
    found = case.search(tmp_path / "state", budgets=(), max_drop=50.0, minimize="bytes")
    document = found.document
    assert document["verified"]["drop"] <= 50
    inside = [p["bytes"] for p in document["front"] if p["drop"] <= 50]
    assert document["chosen"]["bytes"] == min(inside)
    restored = case.search(tmp_path / "state", budgets=(), max_drop=50.0, minimize="bytes", restore=True)
    assert restored.document["verified"]["drop"] <= 50
    assert restored.document["chosen"]["bytes"] <= document["chosen"]["bytes"]


def test_restore_goes_beyond_the_budget_until_the_drop_is_met(case: Case) -> None:
    point = case.found.document["front"]
    exact = min(p["drop"] for p in point)
    start = case.search(case.folder, budgets=(Budget("bits", 3.0),))
    assert start.document["verified"]["drop"] >= exact
    found = case.search(case.folder, budgets=(Budget("bits", 3.0),), max_drop=max(exact, 0.01), restore=True)
    assert found.document["verified"]["drop"] <= max(exact, 0.01)


def test_a_drop_that_cannot_be_met_names_the_least(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "cheapest", lambda points, drop, resource: real(points, -1.0, resource))
    from visq.search.choose import cheapest as real

    with pytest.raises(VisqError, match=r"no choice of bits meets --max-drop -1: the least here is [\d.]+ percent"):
        case.search(case.folder, budgets=(Budget("bits", 3.0),), max_drop=0.0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"budgets": ()}, "nothing limits the search"),
        ({"restore": True}, "--restore puts sites back up until --max-drop holds"),
        ({"widths": (8,)}, "--bits takes two or more"),
        ({"widths": (4, 9)}, "--bits takes two or more"),
    ],
)
def test_wishes_that_make_no_sense(case: Case, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(VisqError, match=message):
        case.search(tmp_path / "state", **changes)


def test_a_drop_needs_images_that_took_no_part(case: Case, tmp_path: Path) -> None:
    with pytest.raises(VisqError, match="--max-drop needs images beside the calibration images"):
        search(case.model, Search(case.base, max_drop=1.0), case.images, None, folder=tmp_path / "state")


def test_what_was_kept_high_is_explained(case: Case) -> None:
    kept = case.found.document["kept_high"]
    widths = {group["sites"][0]: group["width"] for group in case.found.document["groups"]}
    assert kept and all(row["width"] > row["usual"] and widths[row["sites"][0]] == row["width"] for row in kept)
    assert [row["saved"] for row in kept] == sorted((row["saved"] for row in kept), reverse=True)
    assert min(row["saved"] for row in kept) > 0
    kinds = case.found.document["kinds"]
    assert sum(row["groups"] for row in kinds) == len(case.found.document["groups"])


def test_the_front_is_drawn_and_no_point_of_it_is_beaten(case: Case) -> None:
    points = case.found.document["front"]
    best = [point for point in points if point["best"]]
    for one in best:
        assert not any(p["cost"] < one["cost"] and p["drop"] <= one["drop"] for p in points)
    drawing = ET.fromstring(front_svg(case.found.document))
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawing.findall("{http://www.w3.org/2000/svg}circle")) == len(points) + 1


@pytest.mark.parametrize(
    "text, expected",
    [
        ("bytes=500k", (Budget("bytes", 500e3),)),
        ("bits=4.5", (Budget("bits", 4.5),)),
        ("bytes=1.5M, ms=2", (Budget("bytes", 1.5e6), Budget("ms", 2.0))),
    ],
)
def test_budgets_are_read(text: str, expected: tuple[Budget, ...]) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["", "bytes", "bytes=", "bytes=-1", "bits=0", "watts=3", "bits=4,bits=5", "ms=1;2"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(VisqError, match="--budget"):
        parse_budget(text)


def test_a_measurement_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    store = Measurements(tmp_path / MEASURED)
    assert store.measured("a", lambda: float("inf")) == float("inf")
    assert Measurements(tmp_path / MEASURED).measured("a", lambda: 1.0) == float("inf")


def test_learned_bases_are_searched_without_learning() -> None:
    base = get_recipe("visq-distilled-w4a4")
    assert base.scope.learners and not without_learners(base).scope.learners


def test_save_is_what_serialize_counts(case: Case, tmp_path: Path) -> None:
    """The judge's placeholder of a self-check has about the length of a real one."""
    result = pipeline.quantize(copy.deepcopy(case.model), case.found.recipe, case.images, held_out=case.held_out)
    files = serialize(result.model, result.model.recipe, result.model.provenance)[1]
    save(result.model, tmp_path / "a")
    assert artifact_bytes(tmp_path / "a") == sum(map(len, files.values()))
