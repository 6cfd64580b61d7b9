"""AdaRound: every weight is rounded up or down, never elsewhere; the block's loss does not rise; runs repeat."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from visq.calibrate import calibrate
from visq.calibrate.learners.adaround import SoftRounding
from visq.integer.spec import Spec
from visq.models.vim import VisionMamba
from visq.quant.quantizer import Quantizer
from visq.quant.rotated import RotatedQuantizer
from visq.quant.site import WEIGHT, Site, named_sites
from visq.recipes import Recipe, get_recipe

from .conftest import Images


def recipe(scope: str = "linear", **params: Any) -> Recipe:
    base = get_recipe(f"adaround-w4a8-{scope}")
    learner = {"name": "adaround", "epochs": 3, "batch": 4, "holdout": 0.25, "lr": 0.2, **params}
    return Recipe.model_validate(base.model_dump() | {"scope": base.scope.model_dump() | {"learners": [learner]}})


def rounding(bits: int = 3) -> tuple[SoftRounding, torch.nn.Parameter, Quantizer]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 6, generator=generator))
    spec = Spec(bits=bits, narrow=True, granularity="channel")
    smooth = torch.rand(6, generator=generator) + 0.9
    quantizer = Quantizer(spec, 0.6 * weight.detach().abs().amax(1) / spec.qmax, axis=0, smooth=smooth)
    return SoftRounding(Site(WEIGHT), weight, quantizer), weight, quantizer


def test_it_starts_at_the_weight_itself_and_rounds_to_nearest() -> None:
    soft, weight, quantizer = rounding()
    assert quantizer.smooth is not None
    limit = quantizer.spec.qmax * quantizer.scale[:, None] * quantizer.smooth
    torch.testing.assert_close(soft(weight), weight.clamp(-limit, limit))
    soft.hard = True
    torch.testing.assert_close(soft(weight), quantizer(weight))


def test_it_ends_on_the_grid_beside_the_weight() -> None:
    soft, weight, quantizer = rounding()
    original = weight.detach().clone()
    soft.logit.data.normal_(generator=torch.Generator().manual_seed(1))
    soft.finish()
    assert soft.site.quantizer is quantizer
    assert torch.equal(quantizer(weight), weight)
    step = quantizer.scale[:, None] * quantizer.smooth
    inside = (original / step).abs() <= quantizer.spec.qmax
    assert ((weight - original).abs() / step)[inside].max() <= 1


def test_rotated_weights_are_rounded_where_they_are_rotated() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 8, generator=generator))
    matrix, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    rotated, divisor = (weight.detach() / torch.linspace(0.5, 2, 8)) @ matrix, torch.linspace(0.5, 2, 8)
    scale = rotated.abs().amax(1) / 7
    quantizer = RotatedQuantizer(Spec(bits=4, granularity="channel"), scale, axis=0, rotation=matrix, divisor=divisor)
    soft = SoftRounding(Site(WEIGHT), weight, quantizer)
    torch.testing.assert_close(soft(weight), weight.detach())
    soft.logit.data.normal_(generator=generator)
    soft.finish()
    ups = quantizer.encode(weight.detach()) - (rotated / scale[:, None]).floor().clamp(-8, 7)
    assert set(ups.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(quantizer(weight.detach()), weight.detach())


def test_the_loss_does_not_rise_and_runs_repeat(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    again, lines = copy.deepcopy(model), []
    for i, network in enumerate((model, again)):
        calibrate(
            network, recipe(), images, work_dir=tmp_path / str(i), batch_size=4, report=lambda *a: lines.append(a[2])
        )  # type: ignore[arg-type]
    for line in lines[1:3]:
        before, after = line.split("(squared error ")[1].rstrip(")").split(" -> ")
        assert float(after) <= float(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_scope_full_rounds_convolutions_too(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    calibrate(model, recipe("full", lr=1.0, epochs=4), images, work_dir=tmp_path, batch_size=4)  # type: ignore[arg-type]
    moved = set()
    for name, site in named_sites(model):
        if site.kind == WEIGHT and site.parameter == "weight" and site.quantizer is not None:
            weight = model.get_parameter(name)
            assert torch.equal(site.quantizer(weight), weight)
            if not torch.equal(weight, site.quantizer(weights[name])):
                moved.add(name.rpartition(".")[0].rpartition(".")[2])
    assert {"in_proj", "conv1d"} <= moved
