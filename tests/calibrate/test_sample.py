"""Calibration images that are too few or too alike are said to be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visq.calibrate.sample import ENOUGH_FOR_FINE_SCALES, ENOUGH_TO_LEARN, sample_warnings
from visq.recipes import get_recipe


def pictures(n: int) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(
    ("recipe", "enough"),
    [
        ("visq-w8a8", ENOUGH_FOR_FINE_SCALES),
        ("visq-w4a4", ENOUGH_FOR_FINE_SCALES),
        ("visq-w8a8-fused", ENOUGH_FOR_FINE_SCALES),
        ("visq-learned-w8a8", ENOUGH_TO_LEARN),
        ("kscaled-w8a8", ENOUGH_FOR_FINE_SCALES),
    ],
)
def test_too_few(recipe: str, enough: int) -> None:
    assert sample_warnings(pictures(enough).split(3), get_recipe(recipe)) == []
    (sentence,) = sample_warnings([pictures(enough - 1)], get_recipe(recipe))
    assert sentence.startswith(f"{enough - 1} different") and f"{enough} would" in sentence


def test_copies_and_one_colour() -> None:
    recipe = get_recipe("visq-w8a8")
    same, colour = pictures(1).expand(20, -1, -1, -1), torch.full((4, 1, 4, 4), -1.0)
    assert [s.split(" calibration")[0] for s in sample_warnings([same], recipe)] == ["19 of 20", "1 different"]
    assert [s.split(" calibration")[0] for s in sample_warnings([colour], recipe)] == ["4 of 4", "0 different"]
    (sentence,) = sample_warnings([pictures(60), colour], recipe)
    assert "one colour" in sentence and "4 of 64" in sentence


def test_one_scale_a_tensor_wants_one_image() -> None:
    assert sample_warnings([pictures(1)], get_recipe("minmax-w8a8")) == []
    assert len(sample_warnings([torch.zeros(1, 1, 4, 4)], get_recipe("minmax-w8a8"))) == 2


def test_fp32_wants_no_images() -> None:
    assert sample_warnings([pictures(1)], get_recipe("fp32")) == []
