"""Tests programs of LocalVim and LocalVMamba: windows, gates and rotations, same outputs as the simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visq
from tests.lowering.bundles import ParameterBundle
from tests.lowering.test_vmamba import check_engine
from tests.models.test_localmamba import small
from visq.analysis.left_out import left_out
from visq.artifact.geometry_checks import check_geometry
from visq.errors import VisqError
from visq.integer import operations as ir
from visq.integer.arithmetic import quarter_turn
from visq.integer.operations import EnterWindows, LeaveWindows, Turn
from visq.integer.program import Program
from visq.lowering import LoweringError, lower
from visq.quant.site import named_sites
from visq.recipes import get_recipe
from visq.runtime.bundle import read_bundle
from visq.runtime.oracle import Oracle

#: Family and variant.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "class_token": ("localvim", {"variant": "class_token"}),
    "rope": ("localvim", {"variant": "rope"}),
    "maps": ("localvmamba", {}),
}
RECIPES = (
    "minmax-w8a8-full",
    "visq-w8a8-fused",
    "visq-w6a6-full",
    "visq-w4a8-fused",
    "visq-rotated-w4a4-fused",
    "kscaled-w4a4-full",
    "kscaled-w8a8-linear",
    "visq-ladder-w8a8",
)
QUICK = {("rope", "minmax-w8a8-full"), ("maps", "minmax-w8a8-full")}


def cases() -> list[Any]:
    """Returns every network with every recipe; all but a few are for `make test-slow`."""
    return [
        pytest.param(network, recipe, marks=() if (network, recipe) in QUICK else pytest.mark.slow)
        for network in NETWORKS
        for recipe in RECIPES
    ]


@pytest.mark.parametrize("network, recipe", cases())
def test_a_quantized_program_computes_what_the_simulation_does(network: str, recipe: str, tmp_path: Path) -> None:
    family, changes = NETWORKS[network]
    changes = {**changes, "depth": 1} if family == "localvim" else changes
    images = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    visq.quantize(small(family, **changes), get_recipe(recipe), images, samples=4, held_out=1, out=tmp_path / "a")
    bundle, simulation = read_bundle(tmp_path / "a"), visq.load(tmp_path / "a")
    program = bundle.config.program
    assert program is not None, bundle.config.no_program
    batch = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = simulation(batch).numpy()
    assert np.array_equal(check_engine(program, bundle, batch.numpy()), expected)
    if not recipe.endswith("linear"):
        assert Oracle(program, bundle).in_float == {}
    check_geometry(bundle.config)
    told = bundle.config.architecture
    for field, value in (("d_state", 5), ("expand", 3), ("embed_dim", 9)):
        wrong = told.model_copy(update={"geometry": {**told.geometry, field: value}})
        with pytest.raises(VisqError, match=f"architecture.geometry.{field} is .*, the program's is"):
            check_geometry(bundle.config.model_copy(update={"architecture": wrong}))


@pytest.mark.parametrize("network", NETWORKS)
def test_an_fp32_model_has_a_program_too(network: str) -> None:
    family, changes = NETWORKS[network]
    model = small(family, **changes)
    program = lower(model)
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(check_engine(program, ParameterBundle(model), images.numpy()), expected, 1e-3, 1e-4)
    sources = [operation.source for operation in program.operations]
    windows = [source for source in sources if isinstance(source, EnterWindows)]
    assert sum(isinstance(source, LeaveWindows) for source in sources) == len(windows)
    # One window over the whole map moves nothing: w3 of LocalVim's three patches a side.
    expected_windows = {(6, 2), (6, 4), (3, 2)} if family == "localvmamba" else {(3, 2)}
    assert {(source.side, source.window) for source in windows} == expected_windows
    turns = sum(isinstance(step, Turn) for operation in program.operations for step in operation.body)
    assert turns == (2 if network == "rope" else 0)


def test_a_turn_is_a_product_with_i() -> None:
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    expected = 1j * (x[:, ::2] + 1j * x[:, 1::2])
    turned = quarter_turn(x)
    assert np.array_equal(turned[:, ::2], expected.real) and np.array_equal(turned[:, 1::2], expected.imag)


def test_a_turn_of_an_odd_row_is_refused() -> None:
    with pytest.raises(ValueError, match="3 channels are not pairs"):
        turning(3)


def turning(channels: int) -> Program:
    """Returns a program that turns the pixels of an image of 1 x 1."""
    body = (ir.Turn(dst=1, src=0), ir.Store(src=1, tensor="t0"))
    operation = ir.Operation(name="turned", rows=1, width=channels, source=ir.Patches(patch=1, stride=1), body=body)
    tensors = {"t0": ir.TensorDecl(rows=1, width=channels, site=None)}
    return Program(channels=channels, size=1, output="t0", tensors=tensors, operations=(operation,))


@pytest.mark.parametrize("family", ["localvim", "localvmamba"])
def test_every_weight_has_a_role(family: str) -> None:
    model = small(family)
    for recipe in ("minmax-w8a8", "visq-w4a4", "kscaled-w8a8"):
        assert left_out(model, get_recipe(recipe)) == []
    kinds = {name.rpartition("attn.")[2] for name, _ in named_sites(model) if ".attn." in name}
    assert {"global_reduce.in", "channel_select.weight", "act.out", "sigmoid.out"} <= kinds


def test_windows_of_other_maps_are_refused_by_name() -> None:
    with pytest.raises(LoweringError, match=r"orders\.2\.enter: windows of a map of 6 x 3, which is not square"):
        lower(small("localvmamba"), (24, 12))
