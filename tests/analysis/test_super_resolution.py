"""Tests the PSNR of the luma, pairs of folders, and recipes on a network that takes images of any size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.calibrate.conftest import Images
from visq.analysis import evaluate
from visq.analysis.super_resolution import evaluate_restoration, pairs, psnr_y, restore, ssim_y
from visq.artifact import load
from visq.errors import VisqError
from visq.models import create_model
from visq.native.extension import available
from visq.pipeline import quantize
from visq.recipes import Recipe, get_recipe, list_recipes
from visq.runtime import load_engine


def grey(value: int, height: int = 12, width: int = 10) -> Any:
    return np.full((height, width, 3), value, np.uint8)


def test_psnr_of_a_known_error() -> None:
    """One grey level is (65.481 + 128.553 + 24.966) / 255 of luma."""
    expected = 20 * math.log10(255 / (219 / 255))
    assert psnr_y(grey(100), grey(101), 4) == pytest.approx(expected, abs=1e-9)
    assert psnr_y(grey(7), grey(7), 0) == math.inf


def test_the_border_does_not_count() -> None:
    other = grey(100)
    other[:4], other[:, -4:] = 0, 255
    assert psnr_y(other, grey(100), 4) == math.inf
    assert psnr_y(other, grey(100), 3) < 20


def test_what_cannot_be_compared() -> None:
    with pytest.raises(VisqError, match="10x12 cannot be compared with one of 10x11"):
        psnr_y(grey(1), grey(1, 11), 0)
    with pytest.raises(VisqError, match="a border of 5 pixels leaves nothing of an image of 10x12"):
        psnr_y(grey(1), grey(1), 5)
    with pytest.raises(VisqError, match=r"sr must be uint8 \[H, W, 3\], not float32"):
        psnr_y(grey(1).astype(np.float32), grey(1), 0)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Makes two pairs at scale 2: one LR image has its HR image's name, the other has x2 behind it."""
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    hr.mkdir()
    lr.mkdir()
    generator = np.random.default_rng(0)
    for name, partner, (height, width) in (("a", "a", (8, 6)), ("b", "bx2", (7, 10))):
        pixels = generator.integers(0, 256, (2 * height, 2 * width + 1, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(hr / f"{name}.png")
        Image.fromarray(pixels[:height, :width]).save(lr / f"{partner}.png")
    return hr, lr


def test_pairs_and_their_mean(folders: tuple[Path, Path]) -> None:
    found = pairs(*folders, scale=2)
    assert list(found) == ["a", "b"] and found["b"][0].shape == (14, 20, 3) and found["b"][1].shape == (7, 10, 3)
    model = small()
    result = evaluate_restoration(model, *folders)
    assert result.psnr["a"] == psnr_y(restore(model, found["a"][1]), found["a"][0], 2)
    assert result.mean == pytest.approx(sum(result.psnr.values()) / 2)


def test_pairs_that_are_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    hr, lr = folders
    with pytest.raises(VisqError, match=r"a\.png has 6x8 pixels, .* over 3 would be 4x5"):
        pairs(hr, lr, scale=3)
    (lr / "bx2.png").unlink()
    with pytest.raises(VisqError, match=r"b\.png has no partner in .*lr: neither bx2 nor b"):
        pairs(hr, lr, scale=2)
    (lr / "b.png").write_bytes(b"no image")
    with pytest.raises(VisqError, match=r"b\.png cannot be read"):
        pairs(hr, lr, scale=2)
    with pytest.raises(VisqError, match="nowhere is no folder"):
        pairs(tmp_path / "nowhere", lr, scale=2)
    with pytest.raises(VisqError, match="holds no images"):
        pairs(tmp_path, lr, scale=2)


def small() -> Any:
    torch.manual_seed(0)
    return create_model("dvmsr", embed_dim=16, depths=[1, 1], d_state=4, upscale=2).eval().requires_grad_(False)


class Crops(Images):
    skipped: tuple[str, ...] = ()


@pytest.fixture
def crops() -> Any:
    return Crops(torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(1)) - 0.4)


def test_scales_per_position_are_refused_before_any_work() -> None:
    sites = r"x_proj\.in, dt_proj\.in, scan\.y, scan\.h, in_proj\.in, out_proj\.in, out_proj\.out, reparameterize"
    with pytest.raises(VisqError, match=rf"DVMSR takes images of any size, but recipe kscaled-w8a8 .*\({sites}\)"):
        quantize(small(), get_recipe("kscaled-w8a8"), None)  # type: ignore[arg-type]
    with pytest.raises(VisqError, match=r"--without-positions, or recipe\.without_positions\(\)"):
        quantize(small(), get_recipe("ptq4vm-w8a8"), None)  # type: ignore[arg-type]


def test_a_gradient_of_a_classifier_needs_one() -> None:
    with pytest.raises(VisqError, match="ptq4vit-w8a8 weighs errors by the gradient of a classifier's loss, and DVMSR"):
        quantize(small(), get_recipe("ptq4vit-w8a8"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_no_recipe_has_positions_without_positions(recipe: Recipe) -> None:
    names = [f"a.{kind}.{end}" for kind in ("in_proj", "out_proj", "x_proj", "dt_proj", "conv1d") for end in ENDS]
    names += [f"a.{kind}.out" for kind in ("silu", "gate")] + [f"a.scan.{inner}" for inner in INNER] + ["a.a_log"]
    without = recipe.without_positions()
    assert without.positional(names) == [] and without.without_positions() is without
    assert (without is recipe) == (recipe.positional(names) == [])
    assert without is recipe or without.name == f"{recipe.name}-without-positions"
    assert without.resolve(names).keys() == recipe.resolve(names).keys()


ENDS = ("in", "weight", "out")
INNER = ("delta", "abar", "bbar", "h", "b", "c", "y")


@torch.no_grad()
@pytest.mark.parametrize("name", ["minmax-w8a8", "kscaled-w8a8"])
def test_an_artifact_takes_images_of_another_size(name: str, crops: Any, tmp_path: Path) -> None:
    model, images = small(), torch.rand(2, 3, 5, 9) - 0.4
    exact: Tensor = model(images)
    result = quantize(model, get_recipe(name).without_positions(), crops, out=tmp_path / "artifact")
    found = model(images)
    assert 0 < float((found - exact).square().mean() / exact.square().mean()) < 0.01
    loaded = load(tmp_path / "artifact")
    assert torch.equal(loaded(images), found) and loaded.card.preprocess == model.card.preprocess
    assert result.config is not None and result.config.program is not None
    assert result.config.program.size == model.card.preprocess.image_size
    if available():
        engine = load_engine(tmp_path / "artifact", threads=1)
        for height, width in ((5, 9), (7, 7), (1, 12), (5, 9)):
            images = torch.rand(2, 3, height, width) - 0.4
            assert np.array_equal(engine(images.numpy()), loaded(images).numpy()), (height, width)
        assert engine.in_float == {}


def test_there_is_no_accuracy_of_a_network_without_classes(crops: Any) -> None:
    crops.labelled, crops.classes, crops.name = True, ("a",), "crops"
    with pytest.raises(VisqError, match=r"dvmsr has no classes, .*visq\.analysis\.super_resolution"):
        evaluate(small(), crops)


def test_ssim_of_known_images() -> None:
    """SSIM of two constant images is their luminance term; that of noise falls as the noise grows."""
    c1 = (0.01 * 255) ** 2
    x, y = (100 * 219 / 255 + 16), (120 * 219 / 255 + 16)
    expected = (2 * x * y + c1) / (x * x + y * y + c1)
    assert ssim_y(grey(100, 24, 20), grey(120, 24, 20), 4) == pytest.approx(expected, abs=1e-9)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
    assert ssim_y(image, image, 0) == pytest.approx(1)
    little, much = (np.clip(image + rng.normal(0, s, image.shape), 0, 255).astype(np.uint8) for s in (5, 60))
    assert 1 > ssim_y(little, image, 2) > ssim_y(much, image, 2) > 0
    with pytest.raises(VisqError, match="10x4 pixels without the border are smaller than the window of 11"):
        ssim_y(grey(1, 4, 10), grey(1, 4, 10), 0)


def test_ssim_equals_a_sum_over_windows() -> None:
    """One window, written out: weighted means, variances and covariance of the lumas."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0, 256, (11, 11, 3), dtype=np.uint8) for _ in range(2))
    side = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    weights = np.outer(side, side) / side.sum() ** 2
    x, y = (image.astype(float) @ np.array([65.481, 128.553, 24.966]) / 255 + 16 for image in (a, b))
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy, cov = (
        (weights * (x - mx) ** 2).sum(),
        (weights * (y - my) ** 2).sum(),
        (weights * (x - mx) * (y - my)).sum(),
    )
    c1, c2 = 6.5025, 58.5225
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim_y(a, b, 0) == pytest.approx(expected, abs=1e-12)
