"""Provides calibration images for networks whose test defines a fixture `model`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from visq.data import Dataset, open_dataset


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Dataset:
    """Returns four smooth pictures of the model's size."""
    folder, side = tmp_path_factory.mktemp("images"), model.config.image_size
    generator = np.random.default_rng(0)
    for index in range(4):
        low = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(low).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return open_dataset(str(folder), model.card.preprocess, split="calib")


@pytest.fixture(scope="module")
def images(calibration: Dataset) -> Tensor:
    return torch.cat([batch for batch, _ in calibration.batches(3)])[:3]
