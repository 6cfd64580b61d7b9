"""GPTQ: weights land on the grid, with a smaller output error than rounding to nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from visq.calibrate import calibrate
from visq.calibrate.learners.gptq import GPTQ, round_columns
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.models.vim import VisionMamba
from visq.quant.quantizer import Quantizer
from visq.quant.site import named_sites
from visq.recipes import get_recipe

from .conftest import Images


def case(smooth: bool, channels: int = 24) -> tuple[Tensor, Tensor, Quantizer]:
    """Correlated inputs [n, C], a weight [O, C] and its quantizer."""
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(channels, channels, generator=generator)
    x = torch.randn(500, channels, generator=generator) @ mix
    weight = torch.randn(7, channels, generator=generator)
    divisor = torch.rand(channels, generator=generator) + 0.5 if smooth else None
    spec = Spec(bits=3, narrow=True, granularity="channel")
    largest = (weight if divisor is None else weight / divisor).abs().amax(1)
    return x, weight, Quantizer(spec, largest / spec.qmax, axis=0, smooth=divisor)


@pytest.mark.parametrize("smooth", [False, True])
def test_the_output_error_falls_and_the_weights_are_grid_points(smooth: bool) -> None:
    x, weight, quantizer = case(smooth)
    rounded = round_columns(weight, quantizer, (x.T @ x).double(), damp=0.01)
    torch.testing.assert_close(quantizer(rounded), rounded, rtol=1e-6, atol=0)

    def error(w: Tensor) -> float:
        return float((x @ (w - weight).T).square().mean())

    assert error(rounded) < 0.5 * error(quantizer(weight))


def test_uncorrelated_inputs_leave_nothing_to_make_up_for() -> None:
    _, weight, quantizer = case(smooth=False)
    rounded = round_columns(weight, quantizer, torch.eye(weight.shape[1], dtype=torch.double), damp=0.01)
    torch.testing.assert_close(rounded, quantizer(weight))


def test_an_input_that_is_always_zero_is_no_division_by_zero() -> None:
    x, weight, quantizer = case(smooth=False)
    x[:, 3] = 0
    assert torch.isfinite(round_columns(weight, quantizer, (x.T @ x).double(), damp=0.01)).all()
    zeros = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.double)
    torch.testing.assert_close(round_columns(weight, quantizer, zeros, damp=0.01), quantizer(weight))


def test_baking_keeps_what_it_rounded(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    calibrate(model, get_recipe("gptq-w4a8"), images, work_dir=tmp_path, batch_size=4)  # type: ignore[arg-type]
    moved = 0
    for name, site in named_sites(model):
        if name.endswith(".weight") and site.quantizer is not None:
            weight, nearest = model.get_parameter(name), site.quantizer(weights[name])
            assert torch.equal(site.quantizer(weight), weight)
            moved += int((weight != nearest).sum())
    assert moved > 0


def test_damp_must_be_positive() -> None:
    with pytest.raises(VisqError, match="damp"):
        GPTQ(damp=0)
