"""Rotation: the matrices are orthogonal, the network keeps its function, principal axes even out the channels."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from visq.calibrate import calibrate
from visq.errors import VisqError
from visq.quant.rotated import RotatedQuantizer
from visq.recipes import get_recipe
from visq.transforms.hadamard import spreading_rotation
from visq.transforms.rotate import Rotate, principal_axes
from visq.transforms.smooth import Smooth

from ..calibrate.conftest import Images
from .conftest import network, stage_run


@pytest.mark.parametrize("n", [1, 2, 4, 6, 12, 15, 20, 48, 96, 192, 384])
def test_the_matrix_is_orthogonal_and_spreads_every_channel(n: int) -> None:
    rotation = spreading_rotation(n, seed=0)
    matrix = rotation.into(torch.eye(n))
    assert n % len(rotation.matrix) == 0 and (n < 12 or len(rotation.matrix) < 24)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n), rtol=0, atol=1e-5)
    hadamard = n not in (6, 15)
    assert float(matrix.abs().max()) * math.sqrt(n) == pytest.approx(1 if hadamard else math.sqrt(2), rel=1e-3)
    assert torch.equal(spreading_rotation(n, seed=0).into(torch.eye(n)), matrix)


def test_principal_axes_and_hadamard_give_every_channel_the_same_second_moment() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 12, generator=generator) * torch.logspace(0, 1, 12) + 3
    moment = (x.T @ x).double()
    after = (x @ principal_axes(moment) @ spreading_rotation(12, 0).into(torch.eye(12))).square().mean(0)
    torch.testing.assert_close(after, after.mean().expand(12), rtol=1e-3, atol=0)
    before = x.square().mean(0)
    assert before.max() / before.min() > 5


@pytest.mark.parametrize("options", [{}, {"klt": True}, {"smooth": 0.5}, {"klt": True, "smooth": 0.5}])
def test_the_network_computes_what_it_did(options: dict[str, float], tmp_path: Path) -> None:
    model, images = network(), torch.randn(4, 1, 8, 8)
    model.layers[0].norm.weight[3] = 0
    before = model(images)
    run = stage_run(model, images, tmp_path)
    Rotate("*.mixer.*", **options).apply(run)  # type: ignore[arg-type]
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)
    assert set(model.layers[0].norm.weight.tolist()) == {0.0, 1.0}
    assert set(run.rotations) == set(run.specs)
    for path in {name.rpartition(".")[0] for name in run.specs}:
        weight = model.get_submodule(path).weight
        x = torch.randn(5, weight.shape[1])
        product = run.rotations[f"{path}.in"].into(x) @ run.rotations[f"{path}.weight"].into(weight).T
        torch.testing.assert_close(product, x @ weight.T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["quarot", "mambaquant"])
def test_at_eight_bits_the_recipes_stay_near_the_network(family: str, tmp_path: Path) -> None:
    model, images = network(), torch.randn(8, 1, 8, 8)
    before = model(images)
    calibrate(model, get_recipe(f"{family}-w8a8"), Images(images), work_dir=tmp_path, batch_size=4)  # type: ignore[arg-type]
    assert 0 < (model(images) - before).norm() / before.norm() < 0.1
    mixer = model.layers[0].mixer
    for layer in (mixer.in_proj, mixer.out_proj):
        assert type(layer.site_in.quantizer) is type(layer.site_weight.quantizer) is RotatedQuantizer
        assert torch.equal(layer.site_weight.quantizer(layer.weight), layer.weight)
    assert type(mixer.x_proj.site_in.quantizer) is not RotatedQuantizer


@pytest.mark.parametrize("order", [("smooth", "rotate"), ("rotate", "smooth")])
def test_a_rotation_takes_the_place_of_smoothing(order: tuple[str, str], tmp_path: Path) -> None:
    model, images = network(), torch.randn(4, 1, 8, 8)
    run = stage_run(model, images, tmp_path)
    for name in order:
        (Smooth(0.5) if name == "smooth" else Rotate("*.out_proj")).apply(run)
    ends = {f"layers.0.mixer.out_proj.{end}" for end in ("in", "weight")}
    assert set(run.rotations) == ends and set(run.smooth) == set(run.specs) - ends


def test_a_rotated_outlier_no_longer_decides_the_step(tmp_path: Path) -> None:
    """One input channel of in_proj a hundred times the others: rotation brings the 4-bit error down."""
    model, images = network(), torch.randn(8, 1, 8, 8)
    model.layers[0].norm.weight[2] = 100
    model.layers[0].mixer.in_proj.weight[:, 2] /= 100
    before = model(images)
    errors = {}
    for family in ("minmax-channel", "quarot"):
        copied = copy.deepcopy(model)
        recipe = get_recipe(f"{family}-w8a4-linear")
        calibrate(copied, recipe, Images(images), work_dir=tmp_path / family, batch_size=4)  # type: ignore[arg-type]
        errors[family] = float((copied(images) - before).norm())
    assert errors["quarot"] < errors["minmax-channel"]


def test_an_impossible_exponent_is_refused() -> None:
    with pytest.raises(VisqError, match="exponent"):
        Rotate("*", smooth=2)
