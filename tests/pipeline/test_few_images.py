"""What calibration with few images costs the packaged model, on training images that took no part in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import visq
from visq.data import open_dataset
from visq.pipeline import quantize
from visq.recipes import get_recipe


@pytest.mark.slow
@pytest.mark.parametrize(("images", "lost"), [(1, 2.0), (8, 1.0)])
def test_few_images_lose_little(images: int, lost: float, tmp_path: Path) -> None:
    model = visq.load_model("vim_nano_fmnist").eval()
    dataset = open_dataset("fashion-mnist", model.card.preprocess, split="calib")
    x, labels = next(iter(dataset.subset(1000, 999).batches(1000)))
    with torch.no_grad():
        reference = 100 * float((model(x).argmax(1) == labels).double().mean())
    quantize(model, get_recipe("visq-w8a8"), dataset.subset(images, 0), out=tmp_path / "artifact")
    logits = visq.load(tmp_path / "artifact", backend="int", threads=1)(x.numpy())
    assert 100 * float((np.asarray(logits).argmax(1) == labels.numpy()).mean()) > reference - lost


def test_a_poor_sample_is_said_to_be() -> None:
    model = visq.load_model("vim_nano_fmnist")
    dataset = open_dataset("fashion-mnist", model.card.preprocess, split="calib")
    notes = quantize(model, get_recipe("minmax-w8a8"), dataset.select([3, 3, 4])).calibration.notes
    assert len(notes) == 1 and "1 of 3 calibration images are copies" in notes[0]
