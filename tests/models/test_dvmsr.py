"""Tests a small random DVMSR, and the released checkpoint on Set5 where it is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visq.analysis.super_resolution import evaluate_restoration
from visq.errors import VisqError
from visq.models import create_model, load_model, save_checkpoint
from visq.models.dvmsr import MEANS, infer_dvmsr
from visq.quant.site import named_sites

SMALL = {"embed_dim": 8, "depths": [1, 2], "d_state": 4, "upscale": 2}
DVMSR = Path(__file__).parents[3] / "shared/data/dvmsr"


@pytest.mark.parametrize("height, width", [(6, 9), (5, 1)])
def test_images_of_any_size(height: int, width: int) -> None:
    model = create_model("dvmsr", **SMALL).eval()
    assert model(torch.randn(2, 3, height, width)).shape == (2, 3, 2 * height, 2 * width)
    with pytest.raises(VisqError, match=r"DVMSR takes images \[B, 3, H, W\], got \[2, 1, 4, 4\]"):
        model(torch.randn(2, 1, 4, 4))


@torch.no_grad()
def test_residuals_and_mean_against_a_forward_in_one_piece() -> None:
    """Residuals go around groups and around their sum, not around blocks; the mean comes back at the end."""
    model = create_model("dvmsr", **SMALL).eval()
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))

    def conv(layer: torch.nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=1)

    def norm(layer: torch.nn.Module, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), (8,), layer.weight, layer.bias).movedim(-1, 1)  # type: ignore[arg-type]

    images = torch.randn(2, 3, 4, 7)
    shallow = conv(model.conv_first, images)
    x = norm(model.patch_embed["norm"], shallow)
    for group in model.layers:
        y = x
        for block in group.residual_group["blocks"]:
            y = block.mixer(norm(block.norm, y).flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (4, 7))
        x = conv(group.conv, y) + x
    x = conv(model.upsample[0], conv(model.conv_after_body, norm(model.norm_f, x)) + shallow)
    expected = F.pixel_shuffle(x, 2) + torch.tensor(MEANS[3]).view(3, 1, 1)
    assert torch.allclose(model(images), expected, atol=1e-5)


def test_every_site_is_in_the_stage_that_runs_it() -> None:
    model = create_model("dvmsr", **SMALL)
    prefixes = [prefix for stage in model.stages() for prefix in stage.modules]
    for name, _ in named_sites(model):
        assert sum(name.startswith(f"{prefix}.") for prefix in prefixes) == 1, name


def test_checkpoint_comes_back(tmp_path: Path) -> None:
    model = create_model("dvmsr", **SMALL).eval()
    path = tmp_path / "small.safetensors"
    save_checkpoint(model, path)
    loaded = load_model(None, path)
    assert loaded.config == model.config and loaded.card.preprocess == model.card.preprocess
    images = torch.randn(1, 3, 5, 6)
    assert torch.equal(loaded(images), model(images))


def test_the_size_of_images_is_that_of_the_crops(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_checkpoint(create_model("dvmsr", **SMALL), path)
    transform = load_model("dvmsr", path, geometry={"image_size": 24}, preprocess={"resize": 32}).card.preprocess
    assert (transform.image_size, transform.resize, transform.std) == (24, 32, (1.0, 1.0, 1.0))
    with pytest.raises(VisqError, match="3 class names for a head of no classes"):
        load_model("dvmsr", path, classes=["a", "b", "c"])
    with pytest.raises(VisqError, match="unknown geometry 'num_classes'; known: channels, embed_dim"):
        load_model("dvmsr", path, geometry={"num_classes": 3})


def test_shapes_give_the_geometry_back() -> None:
    for geometry in ({}, SMALL, {**SMALL, "channels": 1, "expand": 1, "d_conv": 3, "depths": [1] * 11}):
        with torch.device("meta"):
            model = create_model("dvmsr", **geometry)
        assert infer_dvmsr({name: tuple(t.shape) for name, t in model.state_dict().items()}, {}) == model.config


def test_other_checkpoints_and_variants_are_refused() -> None:
    with pytest.raises(VisqError, match=r"not a DVMSR checkpoint: conv_first.weight, .* missing"):
        infer_dvmsr({"cls_token": (1, 1, 8)}, {})
    shapes = {name: tuple(t.shape) for name, t in create_model("dvmsr", **SMALL).state_dict().items()}
    with pytest.raises(VisqError, match="variant is not supported"):
        infer_dvmsr({**shapes, "conv_last.weight": (3, 64, 3, 3)}, {})


@pytest.mark.skipif(not DVMSR.is_dir(), reason="shared/data/dvmsr is not beside the repository")
def test_the_released_checkpoint_gives_its_psnr_on_set5() -> None:
    model = load_model(None, DVMSR / "team07_DVMSR.pth")
    assert sum(parameter.numel() for parameter in model.parameters()) == 424_428
    found = evaluate_restoration(model, DVMSR / "Set5/HR", DVMSR / "Set5/LR_bicubic/X4")
    assert found.mean == pytest.approx(32.18, abs=0.01)
