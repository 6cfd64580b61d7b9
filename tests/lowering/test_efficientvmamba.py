"""Tests an EfficientVMamba's program: samples, gates, every recipe's form in integers, same outputs as simulated."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import visq
from tests.lowering.bundles import ParameterBundle, slow
from tests.lowering.test_vmamba import check_engine
from tests.models.test_efficientvmamba import small
from visq.analysis.left_out import left_out
from visq.artifact.geometry_checks import check_geometry
from visq.data import Dataset
from visq.errors import VisqError
from visq.integer.operations import MergeSamples, Sample
from visq.integer.program import Program
from visq.integer.resizing import resized
from visq.lowering import LoweringError, lower
from visq.models.efficientvmamba import EfficientVMamba, fold_norms
from visq.pipeline import quantize
from visq.recipes import get_recipe
from visq.runtime.bundle import read_bundle
from visq.runtime.oracle import Oracle


@pytest.fixture(scope="module")
def model() -> EfficientVMamba:
    return fold_norms(small(depths=(1, 1, 1, 1)))


RECIPES = [
    "minmax-w8a8-full",
    *slow("kscaled-w4a4-full", "visq-w6a6-full", "visq-w4a8-fused", "kscaled-w8a8-linear", "visq-ladder-w8a8"),
    *slow("visq-rotated-w4a4-fused"),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_quantized_program_computes_what_the_simulation_does(
    recipe: str, model: EfficientVMamba, calibration: Dataset, images: Tensor, tmp_path: Path
) -> None:
    quantize(copy.deepcopy(model), get_recipe(recipe), calibration, out=tmp_path / "a")
    bundle, simulation = read_bundle(tmp_path / "a"), visq.load(tmp_path / "a")
    program = bundle.config.program
    assert program is not None, bundle.config.no_program
    with torch.no_grad():
        expected = simulation(images).numpy()
    found = check_engine(program, bundle, images.numpy())
    assert np.array_equal(expected, found)
    assert Program.model_validate(program.to_json()) == program
    left = left_out(simulation, get_recipe(recipe))
    if not recipe.endswith("linear"):
        assert left == [] and Oracle(program, bundle).in_float == {}
    check_geometry(bundle.config)
    told = bundle.config.architecture
    for field, value in (("dims", (8, 16, 16, 8)), ("depths", (1, 2, 1, 1)), ("d_state", 3), ("hidden_ratio", 3)):
        wrong = told.model_copy(update={"geometry": {**told.geometry, field: value}})
        with pytest.raises(VisqError, match=f"architecture.geometry.{field} is .*, the program's is"):
            check_geometry(bundle.config.model_copy(update={"architecture": wrong}))


@pytest.mark.parametrize("size", [(44, 44), (52, 37), (30, 64)])
def test_an_fp32_model_has_a_program_for_every_size(size: tuple[int, int], model: EfficientVMamba) -> None:
    program, images = lower(model, size), torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model(images).numpy()
    found = check_engine(program, ParameterBundle(model), images.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    sources = [operation.source for operation in program.operations]
    assert sum(isinstance(source, Sample) for source in sources) == 2 * 4 + 3 * 4  # scans, and downsampling
    assert sum(isinstance(source, MergeSamples) for source in sources) == 2
    again = resized(lower(model), *size, lambda constant: tuple(ParameterBundle(model).constant(constant).shape))
    assert again == program


def test_a_batch_norm_must_be_folded() -> None:
    with pytest.raises(LoweringError, match=r"conv_branch\.1: a batch norm must be folded first, as load_model does"):
        lower(small())
