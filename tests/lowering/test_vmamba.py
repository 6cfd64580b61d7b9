"""Tests a VMamba's program: maps, four directions, same outputs as the model."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import visq
from tests.lowering.bundles import ParameterBundle
from tests.runtime.mutants import Artifact
from visq.data import Dataset
from visq.errors import VisqError
from visq.integer.forms import FloatLinear
from visq.integer.operations import Scan, Transpose
from visq.integer.program import Program
from visq.lowering import LoweringError, lower
from visq.models import VMamba, create_model
from visq.native.extension import available, engine_isas
from visq.pipeline import quantize
from visq.recipes import get_recipe
from visq.runtime.bundle import Bundle, read_bundle
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.operation_forms import form_of, reason
from visq.runtime.oracle import Oracle

GEOMETRY = {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "mlp_ratio": 2, "num_classes": 10, "d_state": 1}


@pytest.fixture(scope="module")
def model() -> VMamba:
    torch.manual_seed(0)
    model: VMamba = create_model("vmamba", **GEOMETRY).eval()
    return model


def quantized(model: VMamba, recipe: Any, calibration: Dataset, folder: Path) -> tuple[Any, Program, Bundle]:
    quantize(copy.deepcopy(model), get_recipe(recipe), calibration, out=folder)
    bundle = read_bundle(folder)
    assert bundle.config.program is not None, bundle.config.no_program
    return visq.load(folder), bundle.config.program, bundle


def check_engine(program: Program, bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """Returns the oracle's logits, after it asserted that every engine gives the same bytes."""
    oracle = Oracle(program, bundle)
    found = oracle(images)
    for isa in engine_isas():
        engine = CpuEngine(program, bundle, threads=1, isa=isa, separate_memory=True)
        assert np.array_equal(engine(images), found), isa
        different = [name for name, data in engine.tensors.items() if not np.array_equal(data, oracle.tensors[name])]
        assert different == [], isa
    for threads in (1, 2, 3):
        engine = CpuEngine(program, bundle, threads=threads)
        for batch in (1, 2, 3):
            assert np.array_equal(engine(images[:batch]), found[:batch]), (threads, batch)
    return found


RECIPES = [
    f"{family}-{bits}-{scope}"
    for family in ("minmax", "kscaled", "visq")
    for bits in ("w8a8", "w4a4")
    for scope in ("linear", "full")
]


@pytest.mark.parametrize("recipe", [*RECIPES, "quarot-w8a8-full", "visq-w8a8-fused", "visq-w4a4-fused"])
def test_a_quantized_program_computes_what_the_simulation_does(
    recipe: str, model: VMamba, calibration: Dataset, images: Tensor, tmp_path: Path
) -> None:
    simulation, program, bundle = quantized(model, recipe, calibration, tmp_path / "a")
    with torch.no_grad():
        expected, fp32 = simulation(images).numpy(), model(images).numpy()
    plain = simulation(images.clone().requires_grad_()).detach().numpy()
    found = check_engine(program, bundle, images.numpy())
    assert np.array_equal(expected, found)
    # PyTorch's float32 rounds a few codes differently; the change is small beside that of quantization.
    assert 0 < np.abs(found - plain).mean() < 0.1 * np.abs(plain - fp32).mean() + 1e-5
    reasons = set(Oracle(program, bundle).in_float.values())
    left = {"the input is not quantized", "not quantized: delta, C, Abar, Bbar, h"}
    assert reasons == (left if recipe.endswith("linear") else set())


@pytest.mark.parametrize("recipe", ["minmax-w8a8-full", "visq-w4a4-full"])
def test_an_artifact_with_stored_windows_loads_and_gives_the_same_bits(
    recipe: str, model: VMamba, calibration: Dataset, images: Tensor, tmp_path: Path
) -> None:
    """Artifacts made before convolutions over maps were one operation cut windows, stored them and multiplied."""
    simulation, program, _ = quantized(model, recipe, calibration, tmp_path / "a")
    older = Artifact.read(tmp_path / "a")
    older.config["program"] = lower(simulation, stored_windows=True).to_json()
    kinds = {operation["source"]["kind"] for operation in older.config["program"]["operations"]}
    assert "dense_conv2d" not in kinds and "dense_conv2d" in {op.source.kind for op in program.operations}
    older.write(tmp_path / "b", random.Random(0))
    with torch.no_grad():
        expected = simulation(images).numpy()
        assert np.array_equal(visq.load(tmp_path / "b")(images).numpy(), expected)
    assert np.array_equal(visq.load(tmp_path / "b", backend="int", threads=1)(images.numpy()), expected)


def test_an_fp32_model_has_a_program_too(model: VMamba, images: Tensor) -> None:
    """Without quantizers the program computes the float32 network, up to the order of sums."""
    program = lower(model)
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(Oracle(program, ParameterBundle(model))(images.numpy()), expected, rtol=2e-4, atol=2e-5)
    assert Program.model_validate(program.to_json()) == program


def test_each_map_is_transposed_once_and_back(model: VMamba) -> None:
    operations = lower(model).operations
    assert sum(isinstance(operation.source, Transpose) for operation in operations) == 2 * len(GEOMETRY["depths"])
    scans = [operation.source for operation in operations if isinstance(operation.source, Scan)]
    assert [scan.reverse for scan in scans] == [False, True, False, True] * 2
    # Each order is stored once, and a forward and a backward scan read it.
    assert len({scan.u for scan in scans}) == 4


SITES = {
    "a scale per channel": {"match": "*.conv.in", "granularity": "channel"},
    "a scale per token": {"match": "*.conv.in", "granularity": "token"},
    "a zero point": {"match": "*.conv.in", "symmetric": False},
    "a zero point per channel": {"match": "*.conv2d.in", "granularity": "channel", "symmetric": False},
    "a scale per token of the depthwise convolution": {"match": "*.conv2d.in", "granularity": "token"},
    "a scale per token in four orders": {"match": "*.x_proj.in", "granularity": "token"},
}


@pytest.mark.parametrize("what", SITES)
def test_sites_of_maps(what: str, model: VMamba, calibration: Dataset, images: Tensor, tmp_path: Path) -> None:
    rules = [SITES[what], {"match": ["*.conv.weight", "*.conv2d.weight", "*.x_proj.weight"], "granularity": "channel"}]
    values = {"name": "own", "title": "t", "default_scope": "s", "scopes": {"s": {"sites": rules}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    simulation, program, bundle = quantized(model, tmp_path / "own.yaml", calibration, tmp_path / "a")
    with torch.no_grad():
        expected = simulation(images).numpy()
    found = check_engine(program, bundle, images.numpy())
    plain = simulation(images.clone().requires_grad_()).detach().numpy()
    assert np.array_equal(expected, found)
    np.testing.assert_allclose(found, plain, atol=2e-3 * np.abs(plain).max())
    forms = {operation.name: form_of(program, operation, bundle) for operation in program.operations}
    dense = forms["layers.0.downsample.conv"]
    assert isinstance(dense, FloatLinear) == (what != "a zero point")
    if rules[0]["match"] == "*.conv.in":
        before = "the input's map was rounded before its windows were taken"
        assert reason(dense) == (None if what == "a zero point" else before)


class FlatMap(VMamba):
    def classify(self, x: Tensor) -> tuple[Tensor]:
        return super().classify(self.layers[0].downsample(x.flatten(1, 2).unflatten(1, (0, 16))))


class MapAndTokens(VMamba):
    def classify(self, x: Tensor) -> tuple[Tensor]:
        return super().classify(x + x.flatten(1, 2))


class FlippedMap(VMamba):
    def classify(self, x: Tensor) -> tuple[Tensor]:
        return super().classify(x.flatten(1, 2).flip(1).unflatten(1, x.shape[1:3]))


class Tokens(VMamba):
    def classify(self, x: Tensor) -> tuple[Tensor]:
        return super().classify(self.layers[0].downsample(x.flatten(1, 2)))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (VMamba, {"mlp_ratio": 0, "forward_type": "v0"}, "floordiv"),
        (FlatMap, {}, "tokens in order make a map"),
        (MapAndTokens, {}, "add of a map"),
        (FlippedMap, {}, "tokens in order"),
        (Tokens, {}, "reads a map"),
    ],
)
def test_what_the_engine_cannot_do_is_named(network: type[VMamba], options: dict[str, Any], message: str) -> None:
    config = create_model("vmamba", **{**GEOMETRY, **options}).config
    with pytest.raises(LoweringError, match=message):
        lower(network(config).eval())


SIZES = [(32, 64), (64, 32), (24, 40), (8, 8)]


@pytest.mark.skipif(not available(), reason="needs the C++ extension")
def test_images_of_any_size(model: VMamba, calibration: Dataset, tmp_path: Path) -> None:
    """Nothing of a VMamba belongs to a position: FP32, simulation and engine take any size, and agree."""
    recipe = get_recipe("minmax-w8a8")
    quantize(copy.deepcopy(model), recipe.without_positions(), calibration, out=tmp_path / "a", deploy_sizes=[(32, 64)])
    simulation, engine = visq.load(tmp_path / "a"), visq.load(tmp_path / "a", backend="int", threads=1)
    assert engine.config.deploy_sizes == simulation.deploy_sizes == ((32, 64),)
    for height, width in SIZES:
        images = torch.rand(2, 3, height, width)
        with torch.no_grad():
            exact, found = model(images), simulation(images)
        assert exact.shape == (2, 10) and not torch.equal(exact, found)
        assert np.array_equal(engine(images.numpy()), found.numpy()), (height, width)
    assert list(engine._sizes._made) == SIZES


def test_scales_per_position_keep_one_size(model: VMamba, calibration: Dataset, tmp_path: Path) -> None:
    quantize(copy.deepcopy(model), get_recipe("kscaled-w8a8"), calibration, out=tmp_path / "a")
    images = torch.rand(1, 3, 32, 64)
    with pytest.raises(VisqError, match=r"quantized for images of 32 x 32 pixels, not 32 x 64: .* for each position"):
        visq.load(tmp_path / "a")(images)
    for size in ((32, 64), (16, 64)):  # as many pixels in another shape are another size as well
        with pytest.raises(VisqError, match=r"not float32 .*: the network was quantized for images of 32 x 32 pixels"):
            visq.load(tmp_path / "a", backend="int")(np.zeros((1, 3, *size), np.float32))
    with pytest.raises(VisqError, match="has scales for the positions of one image size"):
        quantize(copy.deepcopy(model), get_recipe("kscaled-w8a8"), calibration, deploy_sizes=[(32, 64)])


def test_merged_patches_come_in_pairs() -> None:
    model = create_model("vmamba", **{**GEOMETRY, "mlp_ratio": 0, "forward_type": "v0"}).eval()
    assert model(torch.rand(1, 3, 16, 24)).shape == (1, 10)
    with pytest.raises(VisqError, match="VMamba takes images whose sides are multiples of 8, got 16x20"):
        model(torch.rand(1, 3, 16, 20))
