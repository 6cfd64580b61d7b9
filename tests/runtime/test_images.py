"""Checks that engine, oracle and simulation treat bad images and overflow inside the network alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visq
from visq import artifact
from visq.errors import VisqError
from visq.integer.arithmetic import clamp, exp2, to_int16
from visq.integer.images import LARGEST_PIXEL
from visq.models import create_model
from visq.native.extension import available
from visq.runtime.engine import Engine
from visq.simulation import undeploy

Run = Callable[[np.ndarray], np.ndarray]


def executors(folder: Path) -> dict[str, Run]:
    network = artifact.load(folder)

    def simulate(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits: np.ndarray = network(torch.from_numpy(images)).numpy()
        return logits

    found: dict[str, Run] = {"oracle": Engine(folder, kernel="oracle"), "simulation": simulate}
    return found | ({"engine": Engine(folder, threads=1)} if available() else {})


def made(folder: Path, change: Callable[[Any], None] = lambda model: None) -> Path:
    """Saves a Vim in scope linear, whose tensors outside the scope stay float32, after `change`; returns its folder."""
    torch.manual_seed(0)
    geometry = {"patch_size": 14, "stride": 14, "embed_dim": 16, "depth": 1, "d_state": 3}
    model = create_model("vim", image_size=28, channels=1, num_classes=10, **geometry)
    model.card = visq.load_model("vim_nano_fmnist").card
    visq.quantize(model, "minmax-w8a8-linear", "fashion-mnist", samples=2, out=folder)
    model = artifact.load(folder)
    change(model)
    artifact.save(model, folder, overwrite=True)
    return folder


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "images hold NaN or Inf"),
        (np.inf, "images hold NaN or Inf"),
        (-np.inf, "images hold NaN or Inf"),
        (1e38, f"images hold values beyond {LARGEST_PIXEL}; normalize them"),
        (-1e38, f"images hold values beyond {LARGEST_PIXEL}; normalize them"),
    ],
)
def test_images_that_all_refuse(tmp_path: Path, value: float, words: str) -> None:
    folder = made(tmp_path / "a")
    images = np.zeros((2, 1, 28, 28), np.float32)
    images[1, 0, 3, 4] = value
    messages = set()
    for run in executors(folder).values():
        with pytest.raises(VisqError, match=words) as caught:
            run(images)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_the_largest_images_give_the_same_bits(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(-LARGEST_PIXEL, LARGEST_PIXEL, (2, 1, 28, 28)).astype(np.float32)
    found = [run(images) for run in executors(made(tmp_path / "a")).values()]
    assert np.isfinite(found[0]).all() and all(np.array_equal(logits, found[0]) for logits in found)


@pytest.mark.parametrize("where", ["layers.0.norm.weight", "layers.0.mixer.D", "patch_embed.proj.bias"])
def test_overflow_inside_gives_the_same_bits(tmp_path: Path, where: str) -> None:
    """NaN and Inf arise inside the network. All executors round NaN to the largest code."""

    def change(model: Any) -> None:
        model.get_parameter(where).data[:4] = 3e38

    images = np.random.default_rng(0).normal(0, 1, (2, 1, 28, 28)).astype(np.float32)
    with np.errstate(all="ignore"):
        found = [run(images) for run in executors(made(tmp_path / "a", change)).values()]
    assert all(np.array_equal(logits, found[0], equal_nan=True) for logits in found)


def test_undeploy_takes_any_image_again(tmp_path: Path) -> None:
    network = undeploy(artifact.load(made(tmp_path / "a")))
    with torch.no_grad():
        assert not torch.isfinite(network(torch.full((1, 1, 28, 28), torch.nan))).all()


def test_nan_is_the_upper_bound() -> None:
    nan = np.array([np.nan], np.float32)
    assert clamp(nan, -1, 2) == 2 and to_int16(nan) == 32767 and exp2(nan) == exp2(np.float32([126]))
