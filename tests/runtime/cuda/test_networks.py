"""Whole networks of two blocks on the CUDA engine: every recipe's program has the oracle's bits in every tensor."""

from __future__ import annotations

import os
import subprocess
import sys
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

SIZES = dict(image_size=28, channels=1, embed_dim=16, depth=2, d_state=4, num_classes=10)
#: Of 5 tokens, for `make test`, and of 10, for recipes that group steps.
FEW_TOKENS, VIM = {**SIZES, "patch_size": 14, "stride": 14}, {**SIZES, "patch_size": 9, "stride": 9}
VMAMBA = dict(image_size=32, embed_dim=16, depths=[1, 1], mlp_ratio=2, num_classes=10, d_state=1)
#: Recipes that differ in what their programs hold; `make test` runs those of QUICK.
FEW = ("visq-w8a8-fused", "visq-rotated-w4a4", "kscaled-w8a8-linear")
QUICK = ("visq-w8a8-fused", "kscaled-w8a8-linear")


def recipes() -> list[Any]:
    names = [recipe.name for recipe in list_recipes() if recipe.family != "fp32"]
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def vim(geometry: dict[str, int]) -> Any:
    torch.manual_seed(0)
    model = create_model("vim", **geometry)
    model.card = visq.load_model("vim_nano_fmnist").card
    return model


def quantized_vmamba(recipe: str, folder: Path) -> None:
    torch.manual_seed(0)
    pixels = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    images = [(pixel, 0) for pixel in pixels]
    visq.quantize(create_model("vmamba", **VMAMBA).eval(), recipe, images, samples=2, out=folder, check=False)


def check_network(folder: Path, batch: int, joined: float = 0.3) -> None:
    """Compares every tensor with the oracle's, and counts kernels: at least the share `joined` of operations has none
    of its own."""
    bundle = read_bundle(folder)
    program = bundle.config.program
    assert program is not None
    shape = (batch, program.channels, program.size, program.size)
    images = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    check_program(program, bundle, images)
    engine = CudaEngine(program, bundle)
    assert engine.kernels == len(engine.plan.launches) < (1 - joined) * len(program.operations)


@pytest.mark.parametrize("recipe", recipes())
def test_a_vim(recipe: str, tmp_path: Path) -> None:
    model = vim(FEW_TOKENS if recipe in FEW else VIM)
    visq.quantize(model, recipe, "fashion-mnist", samples=2, out=tmp_path / "a", check=False)
    check_network(tmp_path / "a", batch=1 if recipe in FEW else 2)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [*FEW, "visq-w8a8", "minmax-w4a4"])
def test_a_vmamba(recipe: str, tmp_path: Path) -> None:
    quantized_vmamba(recipe, tmp_path / "a")
    check_network(tmp_path / "a", batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [*FEW, "visq-ladder-w8a8", "qmamba-w4a4", "vmamba"])
def test_kernels_compile_for_gpus(recipe: str, tmp_path: Path) -> None:
    """Without a GPU: Triton brings the assembler. The program it runs reads the machine code."""
    if recipe == "vmamba":
        quantized_vmamba("visq-w8a8-fused", tmp_path / "a")
    else:
        visq.quantize(vim(VIM), recipe, "fashion-mnist", samples=2, out=tmp_path / "a", check=False)
    check_compiled(tmp_path / "a")


def check_compiled(folder: Path) -> None:
    """Checks that an artifact's kernels compile, use the instructions of products, and spill nothing."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder.parent)
    command = [sys.executable, "-m", "tests.runtime.cuda.compile_kernels", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 12 and any("mma" in line for line in lines)
    assert [line for line in lines if "local" in line] == []  # nothing is spilled
