"""Takes every packaged method, at 4 bits in every scope, from images to an artifact and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cli.conftest import tiny_model, write_images
from visq.artifact import load
from visq.data import Dataset, open_dataset
from visq.pipeline import quantize
from visq.recipes import get_recipe, list_recipes

NAMES = [recipe.name for recipe in list_recipes() if str(recipe.bits) == "w4a4"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = write_images(tmp_path_factory.mktemp("images"), 8)
    return open_dataset(str(folder), tiny_model().card.preprocess, split="calib")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name.startswith(("kscaled", "minmax")) else pytest.mark.slow) for name in NAMES],
)
def test_loaded_artifact_is_the_simulation(name: str, images: Dataset, tmp_path: Path) -> None:
    result = quantize(tiny_model(), get_recipe(name), images, out=tmp_path / "a")
    x, _ = next(images.batches(8))
    loaded = load(tmp_path / "a")
    logits = result.model(x)
    assert torch.equal(loaded(x), logits) and torch.isfinite(logits).all()
    assert loaded.recipe == get_recipe(name)
