"""Calibration away from the CPU: nothing is left behind on it, and the result is the CPU's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.other_device import HAS_GPU, other_device
from visq.calibrate import calibrate
from visq.device import CPU, device_of
from visq.models import create_model
from visq.models.vim import VisionMamba
from visq.recipes import Recipe, get_recipe

from .conftest import Images

#: One of each estimator, transform and way to search.
RECIPES = [
    "kscaled-w4a4",
    pytest.param("visq-w4a4", marks=pytest.mark.slow),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("minmax-channel-w8a8", "similarity-w4a4", "qmamba-w4a4", "percentile-w6a6", "omse-w4a4")
    ),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("ptq4vm-grid-w4a4", "quarot-w4a4", "mambaquant-w4a4", "visq-ladder-w8a8-fused")
    ),
]
#: All that learns, each for one epoch.
LEARNERS = [
    {"name": "bias_correction"},
    {"name": "gptq"},
    pytest.param({"name": "adaround", "epochs": 1}, marks=pytest.mark.slow, id="adaround"),
    {"name": "jlss", "epochs": 1},
    {"name": "distill", "epochs": 1},
]


@pytest.fixture
def model() -> VisionMamba:
    sizes = dict(image_size=12, patch_size=4, stride=4, channels=1, embed_dim=8, depth=1, d_state=2, num_classes=5)
    return create_model("vim", **sizes).eval().requires_grad_(False)


@pytest.fixture
def images() -> Images:
    return Images(torch.randn(6, 1, 12, 12, generator=torch.Generator().manual_seed(1)))


def calibrated(model: VisionMamba, recipe: str | Recipe, images: Images, work: Path) -> dict[str, Tensor]:
    chosen = recipe if isinstance(recipe, Recipe) else get_recipe(recipe)
    calibrate(model, chosen, images, work_dir=work, batch_size=4)  # type: ignore[arg-type]
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_result_is_that_of_the_cpu(model: VisionMamba, images: Images, tmp_path: Path, recipe: str) -> None:
    expected = calibrated(copy.deepcopy(model), recipe, images, tmp_path / "cpu")
    with other_device() as device:
        found = calibrated(model.to(device), recipe, images, tmp_path / "there")
        assert {tensor.device for tensor in model.state_dict().values()} == {device}
        model.to(CPU)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if HAS_GPU:  # the last bits of sums differ
            torch.testing.assert_close(found[name], tensor, rtol=0.05, atol=0.05, msg=name)
        else:
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner["name"])
def test_learners(model: VisionMamba, images: Images, tmp_path: Path, learner: dict[str, Any]) -> None:
    """A student's scan rounds in float32 there, so that the last digits of what is learned may differ."""
    base = get_recipe("quarot-w4a4-linear" if learner["name"] == "adaround" else "minmax-channel-w4a4-linear")
    recipe = Recipe.model_validate(base.model_dump() | {"scope": base.scope.model_dump() | {"learners": [learner]}})
    expected = calibrated(copy.deepcopy(model), recipe, images, tmp_path / "cpu")
    with other_device() as device:
        found = calibrated(model.to(device), recipe, images, tmp_path / "there")
        model.to(CPU)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.05, atol=0.05, msg=name)


def test_a_killed_run_goes_on_there(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    recipe = get_recipe("minmax-channel-w8a8")
    whole = calibrated(copy.deepcopy(model), recipe, images, tmp_path / "whole")

    def kill(done: int, *_: object) -> None:
        if done == 2:
            raise InterruptedError

    with other_device() as device:
        model.to(device)
        with pytest.raises(InterruptedError):
            calibrate(copy_of(model), recipe, images, work_dir=tmp_path / "half", batch_size=4, report=kill)  # type: ignore[arg-type]
        calibrate(model, recipe, images, work_dir=tmp_path / "half", batch_size=4, resume=True)  # type: ignore[arg-type]
        model.to(CPU)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, whole[name], rtol=0.05 * HAS_GPU, atol=0.05 * HAS_GPU, msg=name)


def copy_of(model: VisionMamba) -> VisionMamba:
    """Returns a copy on the same device; wrappers of the stand-in cannot be copied themselves."""
    device = device_of(model)
    copied = copy.deepcopy(model.to(CPU)).to(device)
    model.to(device)
    return copied
