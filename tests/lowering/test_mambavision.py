"""Tests a MambaVision's program: every recipe's form in integers, same outputs as the simulation."""

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
from tests.models.test_mambavision import small
from visq.artifact.geometry_checks import check_geometry
from visq.data import Dataset
from visq.errors import VisqError
from visq.integer.operations import Attention, Conv1d, EnterWindows, Scan
from visq.integer.program import Program
from visq.lowering import LoweringError, lower
from visq.models.mambavision import MambaVision, fold_norms
from visq.pipeline import quantize
from visq.recipes import get_recipe
from visq.runtime.bundle import read_bundle
from visq.runtime.oracle import Oracle


def ready(**changes: object) -> MambaVision:
    """Returns a folded network with logits of a size that makes rounding visible."""
    return fold_norms(small(**changes))


@pytest.fixture(scope="module")
def model() -> MambaVision:
    return ready()


RECIPES = [
    "minmax-w8a8-full",
    "visq-rotated-w4a4-fused",
    *slow("kscaled-w4a4-full", "visq-w6a6-full", "visq-w4a8-fused", "kscaled-w8a8-linear"),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_quantized_program_computes_what_the_simulation_does(
    recipe: str, model: MambaVision, calibration: Dataset, images: Tensor, tmp_path: Path
) -> None:
    quantize(copy.deepcopy(model), get_recipe(recipe), calibration, out=tmp_path / "a")
    bundle, simulation = read_bundle(tmp_path / "a"), visq.load(tmp_path / "a")
    program = bundle.config.program
    assert program is not None, bundle.config.no_program
    with torch.no_grad():
        expected = simulation(images).numpy()
    found = check_engine(program, bundle, images.numpy())
    assert np.array_equal(expected, found)
    in_float = Oracle(program, bundle).in_float
    if not recipe.endswith("linear"):
        assert in_float == {}
    else:
        assert in_float["levels.2.blocks.2.mixer.attn"] == "q is not quantized"


def test_an_fp32_model_has_a_program_too(model: MambaVision, images: Tensor) -> None:
    program = lower(model)
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(Oracle(program, ParameterBundle(model))(images.numpy()), expected, rtol=1e-3, atol=1e-4)
    assert Program.model_validate(program.to_json()) == program
    sources = [operation.source for operation in program.operations]
    assert sum(isinstance(source, Attention) for source in sources) == 2
    assert {source.ahead for source in sources if isinstance(source, Conv1d)} == {1}
    assert not any(isinstance(source, EnterWindows) for source in sources)  # a window over the whole map moves nothing


def test_a_map_smaller_than_its_window_is_padded() -> None:
    model = ready(windows=(4, 2))
    program = lower(model)
    sources = [operation.source for operation in program.operations if isinstance(operation.source, EnterWindows)]
    assert [(source.side, source.window) for source in sources] == [(3, 4)]
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = model(images).numpy()
    found = check_engine(program, ParameterBundle(model), images.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "recipe", ["visq-w8a8-full", *slow("visq-rotated-w4a4-fused", "visq-ladder-w8a8", "minmax-w8a8-linear")]
)
def test_each_window_is_a_sequence_of_its_own(
    recipe: str, calibration: Dataset, images: Tensor, tmp_path: Path
) -> None:
    """Maps of 3 and 2 in windows of 2 and 1: four windows each, the first level's padded."""
    model = ready(windows=(2, 1))
    quantize(copy.deepcopy(model), get_recipe(recipe), calibration, out=tmp_path / "a")
    bundle, simulation = read_bundle(tmp_path / "a"), visq.load(tmp_path / "a")
    program = bundle.config.program
    assert program is not None, bundle.config.no_program
    scans = [operation.source for operation in program.operations if isinstance(operation.source, Scan)]
    assert [scan.length for scan in scans] == [4, 4, 1]
    with torch.no_grad():
        expected = simulation(images).numpy()
    assert np.array_equal(check_engine(program, bundle, images.numpy()), expected)
    assert Program.model_validate(program.to_json()) == program
    check_geometry(bundle.config)
    told = bundle.config.architecture
    for field, value in (("num_heads", (2, 2)), ("depths", (1, 1, 2, 2)), ("stem_dim", 5), ("mlp_ratio", 3)):
        wrong = told.model_copy(update={"geometry": {**told.geometry, field: value}})
        with pytest.raises(VisqError, match=f"architecture.geometry.{field} is .*, the program's is"):
            check_geometry(bundle.config.model_copy(update={"architecture": wrong}))


def test_what_has_no_form_is_named() -> None:
    with pytest.raises(LoweringError, match=r"conv_down\.1: a batch norm must be folded first, as load_model does"):
        lower(small())
