"""The report as data: names, rounding, what is missing and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import visq.report
from tests.cli.conftest import Workplace, workplace  # noqa: F401 - fixture
from tests.report.parsed import check_numbers, check_structure, parse
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.models import save_checkpoint
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.report.artifact import steps
from visq.report.document import named, rounded
from visq.report.outputs import by_class, chosen, hits, losses
from visq.report.sites import POINTS, scan_row, thinned, worst


def test_names_of_artifacts_are_told_apart() -> None:
    paths = [Path("a/x"), Path("b/x/"), Path("c/y")]
    assert [name for name, _ in named(paths)] == ["a/x", "b/x", "y"]


def test_floats_have_six_digits() -> None:
    assert rounded({"a": (1.23456789, 3), "b": [None, True, "1.23456789"]}) == {
        "a": [1.23457, 3],
        "b": [None, True, "1.23456789"],
    }


def test_losses_against_numbers_by_hand() -> None:
    exact, found = np.array([1, 1, 1, 1, 0, 0, 0, 1], bool), np.array([1, 0, 0, 0, 1, 0, 0, 1], bool)
    row = losses(found, exact)
    assert (row["lost"], row["gained"], row["drop"]) == (3, 1, 25.0)
    assert row["p_value"] == pytest.approx(0.625)
    middle, error = 2 / 10, (5 / 10 - 0.04) ** 0.5 / 10**0.5  # 3.5 lost, 1.5 gained, of 10
    assert row["drop_low"] == pytest.approx(100 * (middle - 1.96 * error))
    assert row["drop_high"] == pytest.approx(100 * (middle + 1.96 * error))
    same = losses(exact, exact)
    assert same["drop"] == 0 and same["p_value"] == 1 and same["drop_low"] < 0 < same["drop_high"]


def test_hits_and_classes() -> None:
    logits = np.array([[3, 2, 1], [1, 3, 2], [1, 2, 3]], np.float32)
    labels = np.array([0, 2, 2])
    assert hits(logits, labels, 1) == pytest.approx(200 / 3) and hits(logits, labels, 5) == 100
    rows = by_class(np.array([0, 1, 2]), np.array([0, 2, 2]), labels, ("a", "b", "c"))
    assert rows[0] == {"class": "c", "images": 2, "fp32_right": 2, "right": 1}
    assert by_class(np.array([0]), np.array([0]), np.array([0]), None)[0]["class"] == "0"


def test_long_scans_keep_their_peaks() -> None:
    values = [0.0] * 1000
    values[777] = 9.0
    found = thinned(values)
    assert len(found) == POINTS and max(found) == 9.0
    assert thinned([1.0, 2.0]) == [1.0, 2.0]


def test_nan_is_the_worst() -> None:
    row = scan_row({"name": "a", "h_error": [0.5, 0.1], "y_error": [0.1, None]})
    assert (row["h_worst"], row["h_worst_step"], row["h_last"]) == (0.5, 1, 0.1)
    assert (row["y_worst"], row["y_worst_step"], row["y_last"]) == (None, 2, None)
    sites = [{"name": n, "sqnr_db": db, "nonfinite": share} for n, db, share in (("a", 3.0, 0.0), ("b", None, 0.5))]
    assert [site["name"] for site in worst([*sites, {"name": "c", "sqnr_db": None, "nonfinite": 0.0}])] == ["b", "a"]
    logits = np.array([[1, np.nan], [0, 1], [2, 1]], np.float32)
    assert chosen(logits).tolist() == [-2, 1, 0] and hits(logits, np.array([0, 1, 0]), 1) == pytest.approx(200 / 3)


def test_steps_of_quantizers() -> None:
    spec = Spec(bits=4)
    smooth = torch.tensor([1.0, 2.0, 4.0])
    assert steps(Quantizer(spec, torch.tensor([0.5]), smooth=smooth)).tolist() == [0.5, 1.0, 2.0]
    groups = Quantizer(spec, torch.tensor([0.5, 1.0]), axis=-1, group=torch.tensor([0, 1, 1]), smooth=smooth)
    assert steps(groups).tolist() == [0.5, 2.0, 4.0]
    assert steps(Quantizer(spec, torch.tensor([0.5, 1.0]), axis=-2, smooth=smooth)).tolist() == [0.5, 1.0]
    state = StateQuantizer(spec, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), torch.tensor([1.0]))
    assert steps(state).tolist() == [3.0, 6.0]


def page_of(document: dict[str, object], page: Path) -> str:
    root = parse(page.read_text())
    check_structure(root)
    check_numbers(root, document)
    return root.all("main")[0].text()


def test_without_images_the_page_says_what_is_missing(workplace: Workplace, tmp_path: Path) -> None:  # noqa: F811
    document = visq.report.write(workplace.artifact, tmp_path / "page.html")
    artifact = document["artifacts"][0]
    assert artifact["decisions"] is None and artifact["errors"] is None
    assert [row["option"] for row in artifact["missing"]] == ["--data", "--time"]
    text = page_of(document, tmp_path / "page.html")
    assert "Accuracy was not measured for this page." in text and "add --data" in text
    assert "Coverage" in text and "Scales and clipping" in text and "Worst sites" not in text


def test_without_fp32_errors_against_it_are_missing(workplace: Workplace, tmp_path: Path) -> None:  # noqa: F811
    document = visq.report.write(workplace.artifact, tmp_path / "page.html", data=str(workplace.images), site_images=2)
    artifact = document["artifacts"][0]
    assert artifact["decisions"]["top1"] is not None and artifact["decisions"]["fp32_top1"] is None
    assert artifact["errors"]["stages"] == [] and artifact["errors"]["worst"]
    assert [row["option"] for row in artifact["missing"]] == ["--fp32", "--time"]
    text = page_of(document, tmp_path / "page.html")
    assert "FP32 was not at hand" in text and "Worst sites" in text and "Where the error arises" not in text


def test_images_without_labels_give_agreement(workplace: Workplace, tmp_path: Path) -> None:  # noqa: F811
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in sorted(workplace.images.rglob("*.png"))[:6]:
        (plain / path.name).write_bytes(path.read_bytes())
    document = visq.report.write(
        workplace.artifact, tmp_path / "page.html", data=str(plain), fp32=str(workplace.checkpoint), site_images=2
    )
    found = document["artifacts"][0]["decisions"]
    assert found["top1"] is None and found["images"] == 6 and 0 <= found["agree"] <= 6
    reasons = {row["what"]: row["why"] for row in document["artifacts"][0]["missing"]}
    assert reasons["accuracy"] == f"{plain} has no labels"
    assert "decides as FP32 does on" in page_of(document, tmp_path / "page.html")


def test_several_artifacts_share_one_page(workplace: Workplace, tmp_path: Path) -> None:  # noqa: F811
    other = tmp_path / "other"
    visq.quantize(
        visq.load_model("vim", workplace.checkpoint), "minmax-w4a4", str(workplace.images), samples=8, out=other
    )
    page = tmp_path / "page.html"
    document = visq.report.write(
        [workplace.artifact, other], page, data=str(workplace.images), fp32=str(workplace.checkpoint), site_images=2
    )
    text = page_of(document, page)
    assert [row["name"] for row in document["comparison"]["rows"]] == ["artifact", "other"]
    assert [front["cost"] for front in document["comparison"]["fronts"]] == ["bytes"]
    assert "Against milliseconds: not drawn" in text
    assert [h.text() for h in parse(page.read_text()).all("h2")] == [
        "All results", "Accuracy against cost", "artifact", "other"
    ]  # fmt: skip


def test_another_fp32_model_is_refused(workplace: Workplace, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(VisqError, match="vim_nano_fmnist is not the network that this vim was made of"):
        visq.report.write(
            workplace.artifact, tmp_path / "page.html", data=str(workplace.images), fp32="vim_nano_fmnist"
        )
    assert not (tmp_path / "page.html").exists()


def test_a_packaged_model_of_another_checkpoint_is_not_taken_for_the_original(tmp_path: Path) -> None:
    from visq.models import load_model

    model = load_model("vim_nano_fmnist")
    with torch.no_grad():
        model.head.bias += 1
    save_checkpoint(model, tmp_path / "tuned.safetensors")
    tuned = load_model("vim_nano_fmnist", tmp_path / "tuned.safetensors")
    visq.quantize(tuned, "minmax-w8a8-linear", "fashion-mnist", samples=2, out=tmp_path / "a")
    document = visq.report.artifact_document([tmp_path / "a"], visq.report.Settings(limit=4, site_images=2, threads=1))
    artifact = document["artifacts"][0]
    assert artifact["decisions"]["fp32_top1"] is None
    assert "give the checkpoint it was made of" in artifact["missing"][0]["why"]
