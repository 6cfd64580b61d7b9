"""VMamba for segmentation: shapes, stages, checkpoints, and the backbone of a classifier."""

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
from visq.analysis.left_out import left_out
from visq.data import Preprocess
from visq.errors import VisqError
from visq.models import create_model, load_model, save_checkpoint
from visq.models.vmamba_seg import fold_norms
from visq.native.extension import available
from visq.quant.site import named_sites
from visq.recipes import get_recipe

SMALL: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 2), "mlp_ratio": 2}


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return create_model("vmamba_seg", **SMALL, head_dim=8, num_classes=3).eval().requires_grad_(False)


def whole(model: Any, images: Tensor) -> Tensor:
    """The forward pass in one piece."""
    x, maps = model.backbone.patch_embed(images), []
    for level, norm in zip(model.backbone.layers, model.backbone.outnorms, strict=True):
        for block in level.blocks:
            x = block(x)
        maps.append(norm(x))
        x = x if level.downsample is None else level.downsample(x)
    head, total = model.decode_head, 0
    for m, lateral in zip(maps, head.laterals, strict=True):
        m = lateral(m).permute(0, 3, 1, 2)
        total = total + F.interpolate(m, maps[0].shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
    return head.classify(head.act2(head.norm2(head.fuse(head.act(head.norm(total)))))).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(32, 48), (36, 52), (30, 41)])
def test_any_size_gives_a_class_to_every_fourth_position(model: Any, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    found = model(images)
    assert found.shape == (2, 3, -(-size[0] // 4), -(-size[1] // 4))
    torch.testing.assert_close(found, whole(model, images))


def test_every_site_is_in_one_stage(model: Any) -> None:
    prefixes = [prefix for stage in model.stages() for prefix in stage.modules]
    for name, _ in named_sites(model):
        assert sum(name.startswith(f"{prefix}.") for prefix in prefixes) == 1, name


def test_a_checkpoint_comes_back(model: Any, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "seg.safetensors")
    again = load_model(None, tmp_path / "seg.safetensors")
    assert again.config == model.config
    images = torch.randn(1, 3, 36, 28)
    assert torch.equal(again(images), model(images))


def test_the_backbone_of_a_classifier(model: Any) -> None:
    classifier = create_model("vmamba", **SMALL, image_size=32, num_classes=5)
    model.take_backbone(classifier)
    ours, theirs = model.backbone.state_dict(), classifier.state_dict()
    taken = [name for name in ours if not name.startswith("outnorms.")]
    assert taken and all(torch.equal(ours[name], theirs[name]) for name in taken)
    with pytest.raises(VisqError, match="embed_dim 16 there, 8 here"):
        model.take_backbone(create_model("vmamba", **{**SMALL, "embed_dim": 16}, image_size=32))


@pytest.mark.skipif(not available(), reason="the C++ extension is not installed")
@pytest.mark.parametrize("head", ["light", "upernet"])
def test_engine_and_simulation_have_equal_bits_at_any_size(head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("vmamba_seg", embed_dim=8, depths=(1, 1), mlp_ratio=1, head=head, head_dim=8, num_classes=3)
    model = fold_norms(model.eval().requires_grad_(False))
    model.card = replace(model.card, config=model.config, preprocess=Preprocess.imagenet(32, 32))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    recipe = get_recipe("minmax-w8a8")
    visq.quantize(model, recipe, images, samples=2, held_out=0, check=False, out=tmp_path / "artifact")
    simulation, engine = visq.load(tmp_path / "artifact"), visq.load(tmp_path / "artifact", backend="int")
    assert left_out(simulation, recipe) == [] and engine.in_float == {}
    for height, width in ((32, 32), (30, 41)):
        batch = torch.randn(2, 3, height, width)
        assert np.array_equal(engine(batch.numpy()), simulation(batch).detach().numpy())
