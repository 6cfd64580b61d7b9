"""A training run of a second: 96 images of 8x8 pixels whose class is the bright quadrant, and a Vim of 5 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

CLASSES = ["upper left", "upper right", "lower left"]


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    shape = np.array(images.shape, ">u4").tobytes()
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + shape + images.tobytes())
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + shape[:4] + labels.tobytes())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "idx"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 96), ("t10k", 30)):
        labels = np.arange(count, dtype=np.uint8) % 3
        images = rng.integers(0, 120, (count, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            top, left = divmod(int(label), 2)
            image[4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 100
        write_idx(folder, prefix, images, labels)
    return folder


@pytest.fixture
def settings(data: Path) -> dict[str, Any]:
    geometry = {"image_size": 8, "patch_size": 4, "stride": 4, "channels": 1, "embed_dim": 16, "depth": 1, "d_state": 4}
    return {
        "model": {"name": "vim", "geometry": {**geometry, "num_classes": 3}},
        "data": {
            "train": f"idx:{data}",
            "eval": f"idx:{data}",
            "classes": CLASSES,
            "preprocess": {"image_size": 8, "resize": 8, "mean": [0.3], "std": [0.3], "channels": 1},
        },
        "epochs": 4,
        "batch_size": 16,
        "lr": 5e-3,
        "ema_decay": 0.9,
        "drop_path": 0.1,
        "label_smoothing": 0.1,
        "augment": {"crop_padding": 1, "erase": 0.2, "mixup": 0.2, "mix_probability": 0.3},
        "device": "cpu",
    }


@pytest.fixture
def config_file(tmp_path: Path, settings: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
