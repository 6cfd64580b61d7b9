"""Training on masks: views of image and mask, class weights, and a whole run of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from visq.errors import VisqError
from visq.models import load_model
from visq.train import load_config, train
from visq.train.config import MasksConfig
from visq.train.masks import LEFT_OUT, class_weights, random_view


@pytest.fixture
def masks_config(tmp_path: Path) -> Path:
    """A configuration over pairs whose class is the brightness; class 7 is unlabelled."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for i in range(count):
            mask = rng.integers(0, 2, (4, 6), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            pixels = np.stack([60 + 120 * mask] * 3, 2).astype(np.uint8)
            mask[:2] = 7
            for kind, values in (("images", pixels), ("labels", mask)):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / split / kind / f"{i}.png")
    settings = {
        "model": {
            "name": "vmamba_seg",
            "geometry": {"embed_dim": 8, "depths": [1, 1], "mlp_ratio": 1, "head_dim": 8, "num_classes": 2},
        },
        "data": {
            "train": str(tmp_path / "train"),
            "eval": str(tmp_path / "val"),
            "classes": ["dark", "bright"],
            "preprocess": {"image_size": 16, "resize": 16, "mean": [0.5] * 3, "std": [0.5] * 3},
        },
        "masks": {"crop": [16, 24], "scale": [0.5, 2.0], "ignore": 7, "weighting": 0.5},
        "epochs": 6,
        "batch_size": 4,
        "lr": 1e-2,
        "ema_decay": 0.5,
        "augment": {"flip": 0.5, "contrast": 0.05},
        "eval_every": 3,
        "device": "cpu",
    }
    path = tmp_path / "masks.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_view_keeps_image_and_mask_together() -> None:
    mask = torch.arange(6, dtype=torch.uint8).repeat_interleave(8).expand(40, 48).contiguous()
    image = (20 * mask)[None].expand(3, -1, -1).contiguous()
    generator = torch.Generator().manual_seed(0)
    for scale in ((1.0, 1.0), (0.5, 0.6), (1.5, 2.0)):
        settings = MasksConfig(crop=(30, 20), scale=scale)
        for _ in range(8):
            pixels, classes = random_view(image, mask, settings, 0.5, generator)
            assert pixels.shape == (3, 30, 20) and classes.shape == (30, 20)
            inside = classes != LEFT_OUT
            away = (pixels[0].int() - 20 * classes.int()).abs()[inside]
            assert (away <= 10).float().mean() > 0.7  # only borders between two classes are mixed
            assert bool(inside.all()) or scale[0] < 1  # a smaller image leaves a rim


def test_class_weights_are_1_on_the_average_of_the_pixels() -> None:
    mask = torch.tensor([0] * 8 + [1] * 2 + [LEFT_OUT] * 5, dtype=torch.uint8)
    weights = class_weights([mask], 3, 0.5)
    assert weights[2] == 0
    assert float(weights[1] / weights[0]) == pytest.approx(2)
    assert float(0.8 * weights[0] + 0.2 * weights[1]) == pytest.approx(1)
    assert class_weights([mask], 2, 0.0).tolist() == [1, 1]


def test_learns_masks_and_resumes(masks_config: Path, tmp_path: Path) -> None:
    config = load_config(masks_config)
    result = train(config, out=tmp_path / "run", progress=False)
    assert result.metric == "mean_iou" and result.score > 80 and result.n == 3
    model: Any = load_model(None, result.model)
    assert model.card.classes == ("dark", "bright")
    again = train(config, out=tmp_path / "run", resume=True, progress=False)
    assert (again.score, again.score_raw, again.score_ema) == (result.score, result.score_raw, result.score_ema)


@pytest.mark.slow
def test_a_vim_learns_masks_too(masks_config: Path, tmp_path: Path) -> None:
    geometry = "{patch_size: 4, stride: 4, grid: 4, embed_dim: 16, depth: 2, maps: 2, head_dim: 8, num_classes: 2}"
    config = load_config(masks_config, [f"model={{name: vim_seg, geometry: {geometry}}}", "masks.crop=[16, 16]"])
    assert train(config, out=tmp_path / "run", progress=False).score > 80


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("augment.cutmix=1", "augment.cutmix does not change masks"),
        ("masks.scale=[2, 1]", "low <= high"),
        ("data.classes=null", "masks need data.classes"),
        ("masks.ignore=null", "has class 7, and data.classes has 2"),
        ("model={name: vmamba, geometry: {embed_dim: 8, depths: [1], image_size: 16}}", "gives an image one class"),
        ("model.backbone=vmamba_nano_imagenette", "another geometry"),
    ],
)
def test_refuses_what_does_not_fit(masks_config: Path, tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(VisqError, match=words):
        train(load_config(masks_config, [override]), out=tmp_path / "run", progress=False)
