"""Whole networks of two blocks on the CUDA engine: every recipe's program has the oracle's bits in every tensor."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visq
from tests.runtime.cuda.agreement import check_program
from visq.models import create_model
from visq.recipes import list_recipes
from visq.runtime.bundle import read_bundle
from visq.runtime.cuda.engine import CudaEngine

VIM = dict(image_size=28, patch_size=14, stride=14, channels=1, embed_dim=16, depth=2, d_state=4, num_classes=10)
VMAMBA = dict(image_size=32, embed_dim=16, depths=[1, 1], mlp_ratio=2, num_classes=10, d_state=1)
#: Recipes that differ in what their programs hold; `make test` runs these.
FEW = ("visq-w8a8-fused", "visq-rotated-w4a4", "kscaled-w8a8-linear")


def recipes() -> list[Any]:
    names = [recipe.name for recipe in list_recipes() if recipe.family != "fp32"]
    return [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def vim() -> Any:
    torch.manual_seed(0)
    model = create_model("vim", **VIM)
    model.card = visq.load_model("vim_nano_fmnist").card
    return model


@pytest.fixture(scope="module")
def vmamba() -> Any:
    torch.manual_seed(0)
    return create_model("vmamba", **VMAMBA).eval()


def check_network(model: Any, recipe: str, dataset: Any, folder: Path, batch: int) -> None:
    visq.quantize(copy.deepcopy(model), recipe, dataset, samples=2, out=folder, check=False)
    bundle = read_bundle(folder)
    program = bundle.config.program
    assert program is not None
    shape = (batch, program.channels, program.size, program.size)
    images = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    check_program(program, bundle, images)
    engine = CudaEngine(program, bundle)
    assert len(program.operations) <= engine.kernels <= 3 * len(program.operations)


@pytest.mark.parametrize("recipe", recipes())
def test_a_vim(recipe: str, vim: Any, tmp_path: Path) -> None:
    check_network(vim, recipe, "fashion-mnist", tmp_path / "a", batch=1 if recipe in FEW else 2)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in recipes() if isinstance(name, str)] + ["visq-w8a8", "minmax-w4a4"])
def test_a_vmamba(recipe: str, vmamba: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    images = [(pixel, 0) for pixel in pixels]
    check_network(vmamba, recipe, images, tmp_path / "a", batch=1)
