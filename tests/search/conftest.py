"""A finished search on a tiny network of one block, made once for each worker."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.analysis.conftest import image_folder
from visq.data import Dataset, open_dataset
from visq.models import VisionMamba, create_model
from visq.recipes import Recipe, get_recipe
from visq.search import Budget, Found, Search, front, search

__all__ = ["image_folder"]

BASE = get_recipe("omse-w8a8")
GEOMETRY = dict(image_size=16, patch_size=8, stride=8, channels=1, embed_dim=8, depth=1, d_state=2, num_classes=4)


@dataclass(frozen=True)
class Case:
    """A network, its images, and one search with all kinds of bits."""

    model: VisionMamba
    images: Dataset
    held_out: Dataset
    folder: Path
    wanted: Search
    found: Found

    def search(self, folder: Path, **changes: Any) -> Found:
        """Searches a copy of the network with another wish."""
        wanted = Search(**{**vars(self.wanted), **changes})
        return search(copy.deepcopy(self.model), wanted, self.images, self.held_out, folder=folder)

    @property
    def base(self) -> Recipe:
        return self.wanted.base


@pytest.fixture(scope="session", autouse=True)
def few_points() -> Iterator[None]:
    """Fronts of three points: every point is a saved and loaded artifact."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "POINTS", 3)
        yield


@pytest.fixture(scope="session")
def case(few_points: None, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    model = create_model("vim", **GEOMETRY).eval().requires_grad_(False)
    model.head.weight.normal_()
    images = open_dataset(str(image_folder), model.card.preprocess, split="test")
    calibration, held_out = images.select(range(8)), images.select(range(8, 24))
    wanted = Search(BASE, (Budget("bits", 5.0),), widths=(3, 5, 8))
    folder = tmp_path_factory.mktemp("search") / "state"
    found = search(copy.deepcopy(model), wanted, calibration, held_out, folder=folder)
    return Case(model, calibration, held_out, folder, wanted, found)
