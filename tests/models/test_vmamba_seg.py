"""VMamba for segmentation: shapes, stages, checkpoints, and the backbone of a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visq.errors import VisqError
from visq.models import create_model, load_model, save_checkpoint
from visq.quant.site import named_sites

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
