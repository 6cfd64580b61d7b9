"""Batch augmentation against slow, separate definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.other_device import HAS_GPU, other_device
from visq.data import Preprocess
from visq.train.augment import Augment, random_affine, random_crop, random_erase, smooth_targets
from visq.train.config import AugmentConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(batch: int = 16, channels: int = 3, size: int = 12) -> Tensor:
    return torch.randint(1, 256, (batch, channels, size, size), generator=generator(), dtype=torch.uint8)


def augment(batch: Tensor, smoothing: float = 0.0, seed: int = 0, **settings: Any) -> tuple[Tensor, Tensor]:
    channels, size = batch.shape[1:3]
    transform = Preprocess(size, size, mean=(0.5,) * channels, std=(0.25,) * channels, channels=channels)  # type: ignore[arg-type]
    labels = torch.arange(len(batch)) % 5
    return Augment(AugmentConfig(**settings), transform, 5, smoothing)(batch, labels, generator(seed))


def test_nothing_on_is_normalization() -> None:
    images, targets = augment(pixels())
    assert torch.allclose(images, (pixels().float() / 255 - 0.5) / 0.25, atol=1e-6)
    assert torch.equal(targets, torch.eye(5)[torch.arange(16) % 5])


def test_smoothing() -> None:
    targets = smooth_targets(torch.tensor([1]), 4, 0.1)
    assert torch.allclose(targets, torch.tensor([[0.025, 0.925, 0.025, 0.025]]))


def test_random_crop_is_a_shift() -> None:
    batch = pixels(64)
    cropped = random_crop(batch, 2, generator())
    padded = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    padded[:, :, 2:14, 2:14] = batch
    shifts = set()
    for i in range(64):
        found = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(padded[i, :, y : y + 12, x : x + 12], cropped[i])
        ]
        assert len(found) == 1
        shifts |= set(found)
    assert len(shifts) > 15  # of 25


def test_flip() -> None:
    images, _ = augment(pixels(), flip=1.0)
    assert torch.equal(images, augment(pixels().flip(3))[0])
    some, _ = augment(pixels(200), flip=0.5)
    plain, _ = augment(pixels(200))
    kept = (some == plain).flatten(1).all(1)
    assert 70 < int(kept.sum()) < 130 and torch.equal(some[~kept], plain[~kept].flip(3))


def test_affine_of_identity_and_flip() -> None:
    batch = pixels()
    small = 1e-7  # turns the affine path on without moving anything
    assert torch.equal(random_affine(batch, AugmentConfig(rotate=small), generator(), 12), batch)
    assert torch.equal(random_affine(batch, AugmentConfig(rotate=small, flip=1.0), generator(), 12), batch.flip(3))


def test_resized_crop_stays_inside() -> None:
    batch = torch.full((64, 1, 16, 16), 200, dtype=torch.uint8)
    cropped = random_affine(batch, AugmentConfig(resized_crop=(0.3, 0.6)), generator(), 16)
    assert torch.equal(cropped[:, :, 1:-1, 1:-1], batch[:, :, 1:-1, 1:-1])
    gradient = torch.arange(16, dtype=torch.uint8).mul(10).expand(64, 1, 16, 16)
    spread = random_affine(gradient, AugmentConfig(resized_crop=(0.3, 0.6)), generator(), 16)[:, 0, 8]
    assert float((spread[:, -2].float() - spread[:, 1].float()).max()) < 130  # of 130 across the same columns


def test_larger_images_come_down_to_the_models_size() -> None:
    """An image enlarged by repeating its pixels comes down to itself."""
    batch = pixels()
    large = batch.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(random_affine(large, AugmentConfig(rotate=1e-7), generator(), 12), batch)
    assert torch.equal(random_affine(large, AugmentConfig(rotate=1e-7, flip=1.0), generator(), 12), batch.flip(3))


def test_colour() -> None:
    images, _ = augment(pixels(), brightness=0.5, contrast=0.5, saturation=0.5)
    assert images.shape == (16, 3, 12, 12) and not torch.equal(images, augment(pixels())[0])
    grey = pixels(channels=1).expand(-1, 3, -1, -1)
    images, _ = augment(grey, saturation=1.0)
    assert torch.allclose(images, augment(grey)[0], atol=1e-6)  # grey has no saturation to change


def test_erase_fills_one_rectangle() -> None:
    images = torch.zeros(200, 2, 20, 20)
    erased = random_erase(images, 0.5, 0.2, generator())
    changed = (erased != 0).any(1)
    touched = changed.flatten(1).any(1)
    assert 60 < int(touched.sum()) < 140
    for mask in changed[touched]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert bool(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
        assert float(mask.float().mean()) < 0.3


@pytest.mark.parametrize("seed", range(5))
def test_mixup_and_cutmix(seed: int) -> None:
    batch = pixels(5, 1)
    batch[:] = torch.arange(5, dtype=torch.uint8)[:, None, None, None] * 50  # the value tells the class
    levels = (torch.arange(5) * 50 / 255 - 0.5) / 0.25
    for settings in ({"mixup": 0.8}, {"cutmix": 1.0}):
        images, targets = augment(batch, seed=seed, **settings)
        assert torch.allclose(targets.sum(1), torch.ones(5))
        # Linear in both cases: the mean over an image is the same mix of values as its target is of classes.
        assert torch.allclose(images.mean((1, 2, 3)), targets @ levels, atol=1e-5)
    assert torch.equal(augment(batch, mixup=1.0, mix_probability=0.0)[0], augment(batch)[0])


def test_same_seed_same_images() -> None:
    everything: dict[str, Any] = {
        "crop_padding": 2, "resized_crop": (0.5, 1.0), "flip": 0.5, "rotate": 10, "shear": 5, "zoom": 0.1,
        "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "erase": 0.5, "mixup": 0.2, "cutmix": 1.0,
    }  # fmt: skip
    first, again, other = (augment(pixels(), 0.1, seed, **everything) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and not torch.equal(first[0], other[0])
    assert bool(first[0].isfinite().all())


def test_another_device_draws_the_same() -> None:
    """But for the noise of erased rectangles, which a GPU draws itself."""
    settings: dict[str, Any] = dict(
        crop_padding=2, resized_crop=(0.3, 1.0), flip=0.5, rotate=10, shear=5, zoom=0.1, brightness=0.3, contrast=0.3,
        saturation=0.3, erase=0.0 if HAS_GPU else 0.5, mixup=0.2, cutmix=1.0,
    )  # fmt: skip
    for seed in range(4):  # mixed in both ways
        expected = augment(pixels(), 0.1, seed, **settings)
        with other_device() as device:
            transform = Preprocess(12, 12, mean=(0.5,) * 3, std=(0.25,) * 3, channels=3)
            change = Augment(AugmentConfig(**settings), transform, 5, 0.1)
            found = change(pixels().to(device), (torch.arange(16) % 5).to(device), generator(seed))
            assert {x.device for x in found} == {device}
            found = tuple(x.cpu() for x in found)
        for x, exact in zip(found, expected, strict=True):
            torch.testing.assert_close(x, exact, rtol=0.05 * HAS_GPU, atol=0.05 * HAS_GPU)
