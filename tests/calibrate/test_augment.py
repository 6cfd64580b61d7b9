"""Views of images: of the same size, drawn from a seed, nothing changed where nothing is asked for."""

from __future__ import annotations

import pytest
import torch

from visq.calibrate.learners.augment import check_views, views
from visq.errors import VisqError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shares_of_zero_draw_nothing() -> None:
    images, source = torch.rand(3, 3, 12, 10), generator()
    assert views(images, 0.0, 0.0, source) is images
    assert torch.equal(source.get_state(), generator().get_state())


def test_every_image_is_mirrored_with_certainty() -> None:
    images = torch.rand(3, 3, 12, 10)
    assert torch.equal(views(images, 1.0, 0.0, generator()), images.flip(-1))


def test_parts_are_of_the_image_and_of_its_size() -> None:
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(16.0), indexing="ij")
    images = torch.stack([rows, columns])[None].repeat(40, 1, 1, 1)
    found = views(images, 0.0, 0.75, generator())
    assert found.shape == images.shape
    assert found.amin() >= 0 and (found[:, 0].amax() <= 19) and (found[:, 1].amax() <= 15)
    heights = found[:, 0].amax((1, 2)) - found[:, 0].amin((1, 2))
    assert heights.min() < 12 and heights.max() > 17
    assert (found[:, 0].diff(dim=1) >= -1e-5).all() and (found[:, 1].diff(dim=2) >= -1e-5).all()
    assert torch.equal(found, views(images, 0.0, 0.75, generator()))


@pytest.mark.parametrize("side", [1, 5, 8])
def test_images_too_small_to_cut_stay(side: int) -> None:
    images = torch.rand(2, 1, side, side)
    torch.testing.assert_close(views(images, 0.0, 0.9, generator()), images)


@pytest.mark.parametrize(("mirror", "crop"), [(-0.1, 0.0), (1.1, 0.0), (0.0, 1.0), (0.0, -0.5)])
def test_shares_out_of_range(mirror: float, crop: float) -> None:
    with pytest.raises(VisqError, match="distill needs 0 <= mirror <= 1 and 0 <= crop < 1"):
        check_views("distill", mirror, crop)
