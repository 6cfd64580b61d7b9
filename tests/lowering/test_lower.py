"""Tests a Vim's program: same outputs as the model, integers where the recipe allows, errors that name the part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visq
import visq.data
from tests.lowering.bundles import ParameterBundle
from tests.runtime.programs import ISAS
from visq.integer.forms import IntegerLinear
from visq.integer.fused_scan import FusedScan
from visq.integer.operations import Round, Scan, inputs
from visq.integer.program import Program
from visq.lowering import LoweringError, lower
from visq.models import VisionMamba, create_model
from visq.models.layers import Linear
from visq.quant.site import named_sites
from visq.recipes import get_recipe, list_recipes
from visq.runtime.bundle import Bundle, read_bundle
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.operation_forms import form_of, reason
from visq.runtime.oracle import Oracle

GEOMETRY = dict(image_size=28, patch_size=9, stride=9, channels=1, embed_dim=16, depth=1, d_state=4, num_classes=10)
FAMILIES = sorted({recipe.family for recipe in list_recipes() if recipe.family != "fp32"})


@pytest.fixture(scope="module")
def model() -> VisionMamba:
    torch.manual_seed(0)
    model = create_model("vim", **GEOMETRY)
    model.card = visq.load_model("vim_nano_fmnist").card
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    dataset = visq.data.open_dataset("fashion-mnist", visq.load_model("vim_nano_fmnist").card.preprocess, split="test")
    return next(iter(dataset.subset(4, 0).batches(4)))[0]


def quantized(model: VisionMamba, recipe: str, folder: Path) -> tuple[VisionMamba, Program, Bundle]:
    import copy

    visq.quantize(copy.deepcopy(model), recipe, "fashion-mnist", samples=4, out=folder)
    simulation = visq.load(folder)
    bundle = read_bundle(folder)
    assert bundle.config.program is not None, bundle.config.no_program
    return simulation, bundle.config.program, bundle


@pytest.mark.parametrize("scope", ["linear", "full", "fused"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe_has_a_program_that_computes_what_the_simulation_does(
    family: str, scope: str, model: VisionMamba, images: Tensor, tmp_path: Path
) -> None:
    names = {recipe.name for recipe in list_recipes()}
    name = next((n for n in (f"{family}-w8a8-{scope}", f"{family}-w8a8") if n in names), None)
    if name is None or get_recipe(name).scope_name != scope:
        pytest.skip(f"{family} has no scope {scope}")
    simulation, program, bundle = quantized(model, name, tmp_path / "a")
    with torch.no_grad():
        expected = simulation(images).numpy()
        fp32 = model.eval()(images).numpy()
    plain = simulation(images.clone().requires_grad_()).detach().numpy()
    oracle = Oracle(program, bundle)
    found = oracle(images.numpy())
    for isa in ISAS:
        engine = CpuEngine(program, bundle, threads=1, isa=isa, separate_memory=True)
        assert np.array_equal(engine(images.numpy()), found), isa
        different = [name for name, data in engine.tensors.items() if not np.array_equal(data, oracle.tensors[name])]
        assert different == [], isa
    for threads in (2, 3, 4):
        assert np.array_equal(CpuEngine(program, bundle, threads=threads)(images.numpy()), found), threads
    assert np.array_equal(expected, found)
    # PyTorch's float32 rounds a few codes differently; the change is small beside that of quantization.
    assert 0 < np.abs(found - plain).mean() < 0.1 * np.abs(plain - fp32).mean() + 1e-5


@pytest.mark.parametrize("recipe", ["visq-w4a4", "quarot-w4a4-full"])
def test_a_network_wide_enough_for_tiles(recipe: str, images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("vim", **{**GEOMETRY, "patch_size": 4, "stride": 4, "embed_dim": 64})
    model.card = visq.load_model("vim_nano_fmnist").card
    _, program, bundle = quantized(model, recipe, tmp_path / "a")
    expected = Oracle(program, bundle)(images.numpy())
    for isa in ISAS:
        for threads in (1, 3):
            assert np.array_equal(CpuEngine(program, bundle, threads=threads, isa=isa)(images.numpy()), expected), isa


@pytest.mark.parametrize("recipe", ["visq-w8a8", "visq-w4a4-fused", "kscaled-w8a8"])
def test_values_of_a_body_stay_in_registers(recipe: str, model: VisionMamba, tmp_path: Path) -> None:
    """The expensive operations of a Vim run in chains, whatever the recipe."""
    _, program, bundle = quantized(model, recipe, tmp_path / "a")
    for isa in ISAS:
        bodies = CpuEngine(program, bundle, threads=1, isa=isa).bodies
        assert bodies["layers.0.mixer.in_proj"] == "store | silu store"
        rounded = "" if recipe.endswith("fused") else "round "
        assert bodies["layers.0.mixer.conv1d"] == f"{rounded}silu round store store_rounded"
        assert bodies["layers.0.mixer.dt_proj"] == "softplus store"
        gated = "load load mul_constant add load load mul_constant add add load mul mul_scalar store"
        assert bodies["layers.0.mixer.scan_b"] == gated and bodies["layers.0.mixer.scan"] == ""


def test_scope_full_is_integers_everywhere(model: VisionMamba, tmp_path: Path) -> None:
    _, program, bundle = quantized(model, "kscaled-w4a4", tmp_path / "a")
    forms = {operation.name: form_of(program, operation, bundle) for operation in program.operations}
    assert {name: reason(form) for name, form in forms.items() if reason(form)} == {}
    assert isinstance(forms["head"], IntegerLinear) and isinstance(forms["patch_embed.proj"], IntegerLinear)


def test_scope_fused_has_codes_for_all_that_is_stored_and_nothing_else(model: VisionMamba, tmp_path: Path) -> None:
    _, program, bundle = quantized(model, "visq-w4a4-fused", tmp_path / "a")
    forms = {operation.name: form_of(program, operation, bundle) for operation in program.operations}
    assert {name: reason(form) for name, form in forms.items() if reason(form)} == {}
    assert isinstance(forms["layers.0.mixer.scan"], FusedScan) and isinstance(forms["layers.0.mixer.scan_b"], FusedScan)
    # Only the residual stream and the logits stay in floating point.
    stored = {name for name, tensor in program.tensors.items() if tensor.site is None}
    whole = program.tensors[program.output].width
    assert {program.tensors[name].width for name in stored} <= {GEOMETRY["embed_dim"], whole}
    # The scan itself stores its y; every other rounded value goes into a tensor.
    coded = {tensor.site for tensor in program.tensors.values()}
    rounded = {step.site for op in program.operations for step in op.body if isinstance(step, Round)}
    assert all(site.endswith("scan_b.y") for site in rounded - coded) and len(rounded - coded) == GEOMETRY["depth"]


def test_scope_linear_says_what_is_left_in_float(model: VisionMamba, tmp_path: Path) -> None:
    _, program, bundle = quantized(model, "kscaled-w8a8-linear", tmp_path / "a")
    why = {operation.name: reason(form_of(program, operation, bundle)) for operation in program.operations}
    assert why["layers.0.mixer.in_proj"] is None and why["layers.0.mixer.dt_proj_b"] is None
    assert why["layers.0.mixer.conv1d"] == why["head"] == "the input is not quantized"
    assert why["layers.0.mixer.scan"] == "not quantized: delta, C, Abar, Bbar, h"


def test_the_branches_share_the_rows_of_the_image(model: VisionMamba) -> None:
    program = lower(model.eval())
    scans = [operation.source for operation in program.operations if isinstance(operation.source, Scan)]
    assert [scan.reverse for scan in scans] == [False, True] * GEOMETRY["depth"]
    assert all(program.tensors[name].reverse for scan in scans if scan.reverse for name in inputs(scan))


def test_an_fp32_model_has_a_program_too(model: VisionMamba, images: Tensor) -> None:
    """Without quantizers the program computes the float32 network, up to the order of sums."""
    program = lower(model.eval())
    found = Oracle(program, ParameterBundle(model))(images.numpy())
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


class Branching(VisionMamba):
    def classify(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor]:
        return super().classify(-hidden if hidden.sum() < 0 else hidden, residual)


class Sine(VisionMamba):
    def classify(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor]:
        return (torch.sin(super().classify(hidden, residual)[0]),)


class Doubled(VisionMamba):
    def classify(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor]:
        return super().classify(hidden + hidden.flip(1), residual)


class Transposed(VisionMamba):
    def classify(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor]:
        return super().classify(hidden.transpose(1, 2), residual)


@pytest.mark.parametrize(
    ("network", "message"),
    [(Branching, "cannot be traced"), (Sine, "sin"), (Doubled, "runs the other way"), (Transposed, "transpose")],
)
def test_what_the_engine_cannot_do_is_named(network: type[VisionMamba], message: str, model: VisionMamba) -> None:
    with pytest.raises(LoweringError, match=message):
        lower(network(model.config).eval())


def linears(model: nn.Module) -> Iterator[str]:
    yield from (name for name, module in model.named_modules() if isinstance(module, Linear))


def test_every_linear_of_the_network_is_in_the_program(model: VisionMamba) -> None:
    names = {operation.name for operation in lower(model.eval()).operations}
    assert set(linears(model)) <= names
    assert len(list(named_sites(model))) > 0


def test_the_program_survives_json(model: VisionMamba) -> None:
    program = lower(model.eval())
    assert Program.model_validate(program.to_json()) == program
