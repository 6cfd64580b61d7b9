"""A program that is resized is the program that lowering writes for the other size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from visq.errors import VisqError
from visq.integer.operations import Constant
from visq.integer.program import Program
from visq.integer.resizing import resized
from visq.lowering import lower
from visq.models import create_model

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "dvmsr": ("dvmsr", {"embed_dim": 8, "depths": [1], "d_state": 4, "upscale": 2}),
    "vim_seg": ("vim_seg", {"patch_size": 8, "stride": 8, "grid": 3, "embed_dim": 8, "depth": 2, "maps": 1}),
    "vmamba": ("vmamba", {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "mlp_ratio": 1, "num_classes": 3}),
}


def made(name: str) -> tuple[Any, Callable[[Constant], tuple[int, ...]]]:
    torch.manual_seed(0)
    family, geometry = NETWORKS[name]
    model = create_model(family, **geometry).eval()
    return model, lambda constant: tuple(model.get_parameter(constant.name).shape)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(32, 32), (32, 64), (96, 32)])
def test_it_is_what_lowering_writes(name: str, size: tuple[int, int]) -> None:
    model, shape_of = made(name)
    program = lower(model, (32, 32))
    found = resized(program, *size, shape_of)
    assert found == lower(model, size) and found.to_json() == lower(model, size).to_json()
    assert resized(found, 32, 32, shape_of) == program
    assert Program.model_validate(found.to_json()) == found


def test_positions_of_one_size_are_refused() -> None:
    model = create_model("vim", image_size=28, patch_size=7, stride=7, embed_dim=8, depth=1, num_classes=3, d_state=2)
    program = lower(model.eval())
    with pytest.raises(
        VisqError, match=r"made for images of 28 x 28 pixels: .*(joins sequences|every position|reads row)"
    ):
        resized(program, 56, 56, lambda constant: tuple(model.get_parameter(constant.name).shape))


def test_attention_over_windows_of_one_size_is_refused() -> None:
    geometry = {"image_size": 48, "stem_dim": 4, "embed_dim": 8, "depths": [1, 1, 2, 2], "num_heads": [2, 4]}
    model = create_model("mambavision", **geometry, windows=[3, 2], norm="folded", d_state=2, num_classes=3).eval()
    program = lower(model)
    with pytest.raises(VisqError, match=r"made for images of 48 x 48 pixels: .* counts positions of one size"):
        resized(program, 96, 96, lambda constant: tuple(model.get_parameter(constant.name).shape))


@pytest.mark.parametrize(("size", "message"), [((0, 5), "too small"), ((2**11, 2**11), "less than or equal")])
def test_sizes_that_no_program_has_are_refused(size: tuple[int, int], message: str) -> None:
    model, shape_of = made("dvmsr")
    with pytest.raises(VisqError, match=f"no program for images of {size[0]} x {size[1]} pixels: .*{message}"):
        resized(lower(model, (8, 8)), *size, shape_of)
