"""Vim for segmentation: shapes, stages, checkpoints, positions at any size, and the backbone of a classifier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import visq
from tests.artifact.test_validation import refused, written
from tests.lowering.test_vmamba import check_engine
from tests.runtime.mutants import Artifact
from visq.analysis.left_out import left_out
from visq.artifact.geometry_checks import check_geometry
from visq.data import Preprocess
from visq.errors import VisqError
from visq.integer.program import Program
from visq.models import create_model, load_model, save_checkpoint
from visq.native.extension import available
from visq.quant.site import named_sites
from visq.recipes import Recipe, get_recipe
from visq.runtime.bundle import read_bundle

SMALL: dict[str, Any] = {"patch_size": 8, "stride": 8, "embed_dim": 16, "depth": 2, "d_state": 4}


def small() -> Any:
    torch.manual_seed(0)
    model = create_model("vim_seg", **SMALL, grid=4, maps=2, head_dim=8, num_classes=3)
    torch.nn.init.normal_(model.positions.pos_embed)
    return model.eval().requires_grad_(False)


def whole(model: Any, images: Tensor) -> Tensor:
    """The forward pass in one piece, over sequences."""
    planes = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, 8)
    size = planes.shape[2:]
    table = F.interpolate(model.positions.pos_embed.mT.unflatten(2, (4, 4)), size, mode="bilinear")
    hidden = (planes + table).flatten(2).mT
    residual, total = torch.zeros_like(hidden), torch.zeros(())
    for block, norm, lateral in zip(model.layers, model.outnorms, model.decode_head.laterals, strict=True):
        hidden, residual = block(hidden, residual)
        total = total + lateral(norm(hidden + residual))
    head = model.decode_head
    x = head.fuse(head.act(head.norm(total.unflatten(1, size))))
    return head.classify(head.act2(head.norm2(x))).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(32, 32), (40, 27), (16, 64)])
def test_any_size_gives_a_class_to_every_patch(size: tuple[int, int]) -> None:
    model, images = small(), torch.randn(2, 3, *size)
    found = model(images)
    assert found.shape == (2, 3, size[0] // 8, size[1] // 8)
    torch.testing.assert_close(found, whole(model, images))


def test_every_site_is_in_one_stage() -> None:
    model = small()
    prefixes = [prefix for stage in model.stages() for prefix in stage.modules]
    for name, _ in named_sites(model):
        assert sum(name.startswith(f"{prefix}.") for prefix in prefixes) == 1, name


def test_layers_are_spread_evenly_and_end_with_the_last() -> None:
    assert create_model("vim_seg", depth=24, embed_dim=16).config.read == [5, 11, 17, 23]
    with pytest.raises(VisqError, match="maps 3: there are only 2 layers"):
        create_model("vim_seg", **SMALL, maps=3)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    model = small()
    save_checkpoint(model, tmp_path / "seg.safetensors")
    again = load_model(None, tmp_path / "seg.safetensors")
    assert again.config == model.config
    images = torch.randn(1, 3, 40, 24)
    assert torch.equal(again(images), model(images))


def test_the_backbone_of_a_classifier() -> None:
    model, classifier = small(), create_model("vim", **SMALL, image_size=32, num_classes=5)
    model.take_backbone(classifier)
    ours, theirs = model.state_dict(), classifier.state_dict()
    taken = [name for name in ours if name.startswith(("patch_embed.", "layers."))]
    assert taken and all(torch.equal(ours[name], theirs[name]) for name in taken)
    without_token = torch.cat([theirs["pos_embed"][:, :8], theirs["pos_embed"][:, 9:]], dim=1)
    assert torch.allclose(ours["positions.pos_embed"], without_token, atol=1e-6)
    with pytest.raises(VisqError, match="d_state 8 there, 4 here"):
        model.take_backbone(create_model("vim", **{**SMALL, "d_state": 8}, image_size=32))


def quantized(recipe: Recipe, folder: Path) -> Path:
    """Returns the folder of an artifact of the small network."""
    model = small()
    model.card = replace(model.card, config=model.config, preprocess=Preprocess.imagenet(32, 32))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    visq.quantize(model, recipe, images, samples=2, held_out=0, check=False, out=folder)
    return folder


def test_positions_that_do_not_fit_are_refused_by_both(tmp_path: Path) -> None:
    original = Artifact.read(quantized(get_recipe("minmax-w8a8-linear"), tmp_path / "artifact"))

    def constants(config: dict[str, Any]) -> dict[str, Any]:
        steps = [step for operation in config["program"]["operations"] for step in operation["body"]]
        return {step[key]["name"]: step[key] for step in steps for key in ("constant", "weight") if key in step}

    def another_grid(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        constants(config)["positions.pos_embed"]["grid"] = [4, 5]

    def a_norm_with_positions(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        constants(config)["layers.0.norm.weight"]["grid"] = [4, 4]

    def no_square(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors["positions.pos_embed"] = tensors["positions.pos_embed"][:, :15]

    for change, words in (
        (another_grid, r"has 16 rows, the positions of positions\.pos_embed are \(4, 5\)"),
        (a_norm_with_positions, r"takes layers\.0\.norm\.weight as a map; only what is added to rows may be one"),
        (no_square, r"positions\.pos_embed is \[1, 15, 16\], .* needs \[1, 9, 16\]"),
    ):
        refused(written(original, tmp_path / change.__name__, change), words)


RECIPES = (
    *("visq-w8a8-full", "visq-rotated-w4a4-fused", "kscaled-w4a4-full", "minmax-w8a8-linear", "qmamba-w6a6-full"),
    *("visq-ladder-w8a8-fused", "omse-w4a8-full", "quarot-w4a4-full", "mambaquant-w8a8-full", "ptq4vm-grid-w4a4-full"),
    *("smoothquant-w8a8-full", "percentile-w6a6-full", "similarity-w8a8-full", "gptq-w4a8-full", "adaround-w4a8-full"),
    *("ptq4vm-w4a4-full", "visq-learned-w4a4-full", "minmax-channel-w8a8-full"),
)


@pytest.mark.skipif(not available(), reason="the C++ extension is not installed")
@pytest.mark.parametrize(
    "recipe", ["minmax-w8a8-full", *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES)]
)
def test_oracle_engine_and_simulation_have_equal_bits_at_any_size(recipe: str, tmp_path: Path) -> None:
    chosen = get_recipe(recipe).without_positions()
    quantized(chosen, tmp_path / "artifact")
    bundle, simulation = read_bundle(tmp_path / "artifact"), visq.load(tmp_path / "artifact")
    engine, program = visq.load(tmp_path / "artifact", backend="int"), bundle.config.program
    assert program is not None, bundle.config.no_program
    batch = torch.randn(2, 3, 32, 32)
    assert np.array_equal(check_engine(program, bundle, batch.numpy()), simulation(batch).detach().numpy())
    assert Program.model_validate(program.to_json()) == program
    for height, width in ((32, 32), (16, 59)):
        batch = torch.randn(2, 3, height, width)
        assert np.array_equal(engine(batch.numpy()), simulation(batch).detach().numpy())
    if not recipe.endswith("linear"):
        assert left_out(simulation, chosen) == [] and engine.in_float == {}
    check_geometry(bundle.config)
    told = bundle.config.architecture
    wrong = told.model_copy(update={"geometry": {**told.geometry, "d_state": 5}})
    with pytest.raises(VisqError, match=r"architecture.geometry.d_state is 5, the program's is 4"):
        check_geometry(bundle.config.model_copy(update={"architecture": wrong}))
