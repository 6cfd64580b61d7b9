"""Makes a tiny random Vim, and a folder of images to calibrate and measure it with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visq.data import Dataset, open_dataset
from visq.models import VisionMamba, create_model

GEOMETRY = dict(image_size=16, patch_size=4, stride=4, channels=1, embed_dim=16, depth=2, d_state=4, num_classes=4)


@pytest.fixture
def model() -> VisionMamba:
    torch.manual_seed(0)
    model = create_model("vim", **GEOMETRY).eval().requires_grad_(False)
    model.head.weight.normal_()
    return model


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in range(4):
        (folder / f"class{label}").mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(folder / f"class{label}/{i}.png")
    return folder


@pytest.fixture
def images(model: VisionMamba, image_folder: Path) -> Dataset:
    return open_dataset(str(image_folder), model.card.preprocess, split="test")
