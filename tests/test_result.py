"""What `visq.quantize` returns: the check, and the ways on from there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import visq
from tests.analysis.conftest import image_folder as image_folder
from tests.analysis.conftest import images as images
from tests.analysis.conftest import model as model
from visq.data import Dataset
from visq.errors import VisqError
from visq.models import VisionMamba
from visq.result import Result

RECIPE = "minmax-w8a8"


@pytest.fixture
def result(model: VisionMamba, image_folder: Path) -> Result:
    return visq.quantize(model, RECIPE, image_folder, samples=8)


def pixels(images: Dataset) -> torch.Tensor:
    return next(iter(images.batches(5)))[0]


def test_the_unsaved_result_is_whole(result: Result, images: Dataset, image_folder: Path) -> None:
    logits = result(pixels(images))
    assert np.array_equal(result.engine(threads=1)(pixels(images).numpy()), logits.numpy())
    assert visq.evaluate(result, image_folder).predictions.tolist() == (
        visq.evaluate(result.engine(), image_folder).predictions.tolist()
    )
    assert result.check is not None and result.check.calibration.images == 8
    assert result.path is None and result.recipe.name == RECIPE and result.calibration_seconds > 0


def test_saving_writes_what_quantize_would_have_written(
    result: Result, model: VisionMamba, images: Dataset, image_folder: Path, tmp_path: Path
) -> None:
    assert result.save(tmp_path / "a") == tmp_path / "a" == result.path
    assert visq.load(tmp_path / "a")(pixels(images)).equal(result(pixels(images)))
    with pytest.raises(VisqError, match="exists"):
        result.save(tmp_path / "a")
    result.save(tmp_path / "a", overwrite=True)

    fresh = visq.load(tmp_path / "a").artifact
    assert fresh.check == result.check


def test_it_goes_on_to_other_tools(result: Result, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    exported = result.export(tmp_path / "net.onnx")
    assert exported.path.stat().st_size == exported.bytes
    numbers = result.report(tmp_path / "report.html", limit=4, site_images=2)
    assert "<html" in (tmp_path / "report.html").read_text() and numbers["artifacts"]


def test_the_line_that_names_it(result: Result, model: VisionMamba, tmp_path: Path) -> None:
    verdict = result.check.verdict  # type: ignore[union-attr]
    pattern = rf"<visq.Result \S+ with {RECIPE}: {verdict}, \d+ of 16 decisions are FP32's .*; not saved>"
    assert re.fullmatch(pattern, repr(result)), repr(result)
    result.save(tmp_path / "a")
    assert repr(result).endswith(f"saved in {tmp_path / 'a'}>")
    assert repr(result.engine()).startswith(f"<visq.Engine {tmp_path / 'a'}: {model.card.name} with {RECIPE}, ")


def test_what_is_wrong_is_a_warning(model: VisionMamba, image_folder: Path) -> None:
    with pytest.warns(UserWarning) as told:
        result = visq.quantize(model, "visq-w2a2", image_folder, samples=2)
    texts = [str(warning.message) for warning in told]
    assert result.check is not None and result.check.verdict == "broken"
    assert [text for text in texts if text.startswith("self-check: broken - do not use it")]
    assert result.notes and set(result.notes) <= set(texts)


def test_without_a_check(model: VisionMamba, image_folder: Path) -> None:
    result = visq.quantize(model, RECIPE, image_folder, samples=8, check=False)
    assert result.check is None and "not checked" in repr(result)
