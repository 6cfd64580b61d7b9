"""Tests image size and stride from the number of tokens against a search over all strides."""

from __future__ import annotations

from itertools import product

import pytest

from visq.errors import VisqError
from visq.models import VimConfig
from visq.models.geometry import fit_image, sizes_that_fit

GEOMETRIES = [
    VimConfig(image_size=image, patch_size=patch, stride=stride)
    for image, patch, stride in product(range(1, 20), range(1, 7), range(1, 9))
    if image >= patch
]


def test_given_sizes_are_kept() -> None:
    for c in GEOMETRIES:
        assert fit_image(c.num_tokens, c.patch_size, c.image_size, c.stride) == (c.image_size, c.stride)


def test_a_stride_is_found_for_the_image_size() -> None:
    for c in GEOMETRIES:
        image, stride = fit_image(c.num_tokens, c.patch_size, c.image_size)
        fits = [s for s in range(1, 40) if ((image - c.patch_size) // s + 1) ** 2 + 1 == c.num_tokens]
        assert image == c.image_size and stride in fits
        if c.patch_size in fits:
            assert stride == c.patch_size
        elif c.num_patches > 1 and any((image - c.patch_size) % s == 0 for s in fits):
            assert (image - c.patch_size) % stride == 0


def test_an_image_size_is_found_for_the_stride() -> None:
    for c in GEOMETRIES:
        image, stride = fit_image(c.num_tokens, c.patch_size, stride=c.stride)
        assert stride == c.stride and image <= c.image_size
        assert VimConfig(image_size=image, patch_size=c.patch_size, stride=stride).num_tokens == c.num_tokens


def test_image_sizes_that_no_stride_fits_are_refused() -> None:
    for image, patch, side in product(range(1, 16), range(1, 6), range(1, 8)):
        if not any(image >= patch and (image - patch) // s + 1 == side for s in range(1, 30)):
            with pytest.raises(VisqError, match="does not fit images of"):
                fit_image(side**2 + 1, patch, image)


@pytest.mark.parametrize("tokens", [0, 1, 3, 196, 198, 199])
def test_tokens_that_are_no_square_and_a_class_token(tokens: int) -> None:
    with pytest.raises(VisqError, match=f"has {tokens} tokens; {tokens} is no square number"):
        fit_image(tokens, 16)


def test_a_huge_image_size_takes_no_time() -> None:
    assert fit_image(197, 16, 10**12) == (10**12, (10**12 - 16) // 13)


def test_sizes_are_said() -> None:
    assert (
        sizes_that_fit(197, 16)
        == "197 tokens fit 224 pixels at stride 16, 120 pixels at stride 8, 68 pixels at stride 4"
    )
    assert sizes_that_fit(10, 1) == "10 tokens fit 3 pixels at stride 1"
