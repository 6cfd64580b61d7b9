"""A weight's scale searched on its layer's output, and bias correction."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from visq.calibrate import calibrate
from visq.errors import VisqError
from visq.models.vim import VisionMamba
from visq.quant.estimators.similarity import CANDIDATES
from visq.quant.site import named_sites
from visq.recipes import Recipe, load_method
from visq.recipes.catalog import make_recipe

from .conftest import Images


def recipe_from(tmp_path: Path, sites: str, learners: str = "[]") -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"name: custom\ntitle: t\ndefault_scope: s\nscopes: {{s: {{sites: {sites}, learners: {learners}}}}}\n"
    )
    family = load_method(file)
    return make_recipe(family, family.bits, "s")


@pytest.mark.parametrize("layer", ["out_proj", "conv1d"])
def test_the_weight_scale_maximizes_the_output_cosine(
    model: VisionMamba, images: Images, tmp_path: Path, layer: str
) -> None:
    module = model.layers[0].mixer.get_submodule(layer)
    weight = module.weight.clone()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = module.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    model(images.images)
    handle.remove()
    x, reference = seen[0]
    full = weight.abs().max() / 7

    def score(multiplier: float) -> float:
        module.weight.data = (weight / (full * multiplier)).round().clamp(-8, 7) * full * multiplier
        return float(torch.cosine_similarity(module(x), reference, dim=-1).mean())

    best = max(score(c) for c in CANDIDATES.tolist())
    module.weight.data = weight
    recipe = recipe_from(tmp_path, f'[{{match: "layers.0.mixer.{layer}.weight", bits: 4, estimator: similarity}}]')
    calibrate(model, recipe, images, work_dir=tmp_path / "w", batch_size=5)  # type: ignore[arg-type]
    quantizer = dict(named_sites(model))[f"layers.0.mixer.{layer}.weight"].quantizer
    assert score(float(quantizer.scale / full)) >= best - 1e-6  # type: ignore[union-attr,operator]


def test_weight_and_output_are_searched_in_turn(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    sites = """[{match: "layers.0.mixer.conv1d.weight", bits: 4, estimator: {name: similarity, rounds: 2}},
        {match: "layers.0.mixer.conv1d.out", bits: 4, granularity: {kind: channel_groups, k: 3, power_of_two: true},
        estimator: similarity}]"""
    calibrate(model, recipe_from(tmp_path, sites), images, work_dir=tmp_path / "w", batch_size=5)  # type: ignore[arg-type]
    out = dict(named_sites(model))["layers.0.mixer.conv1d.out"].quantizer
    shifts = torch.log2(out.scale.max() / out.scale)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(shifts, shifts.round())


def test_a_search_per_channel_is_refused(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    recipe = recipe_from(tmp_path, '[{match: "*.out_proj.weight", granularity: channel, estimator: similarity}]')
    with pytest.raises(VisqError, match="one symmetric scale per tensor"):
        calibrate(model, recipe, images, work_dir=tmp_path / "w")  # type: ignore[arg-type]


def test_hessian_guided_recipes_run_with_gradients(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    sites = """[{match: "*.out_proj.weight", bits: 4, estimator: {name: similarity, score: hessian}},
        {match: ["*.out_proj.out", "*.silu*.out"], bits: 4, estimator: {name: similarity, score: hessian}}]"""
    result = calibrate(model, recipe_from(tmp_path, sites), images, work_dir=tmp_path / "w", batch_size=5)  # type: ignore[arg-type]
    assert len(result.specs) == 8
    assert torch.isfinite(model(images.images)).all()


def test_bias_correction_takes_the_mean_error_off(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    for parameter in model.parameters():  # what stays in floating point ends in float16: see visq.quant.half
        parameter.data = parameter.data.half().float()
    outputs: list[torch.Tensor] = []
    module = model.layers[0].mixer.dt_proj
    handle = module.register_forward_hook(lambda m, args, out: outputs.append(out))
    model(images.images)
    sites = '[{match: "layers.0.mixer.dt_proj.weight", bits: 2}]'
    errors = []
    for learners in ("[]", "[bias_correction]"):
        tuned = copy.deepcopy(model)
        tuned.layers[0].mixer.dt_proj._forward_hooks.clear()
        calibrate(tuned, recipe_from(tmp_path, sites, learners), images, work_dir=tmp_path / "w", batch_size=5)  # type: ignore[arg-type]
        seen: list[torch.Tensor] = []
        tuned.layers[0].mixer.dt_proj.register_forward_hook(lambda m, args, out, seen=seen: seen.append(out))
        tuned(images.images)
        errors.append((seen[0] - outputs[0]).mean((0, 1)).abs().max())
    handle.remove()
    assert errors[1] < 1e-5 < errors[0]
