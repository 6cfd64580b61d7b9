"""Checks the decay ladder: its fit, its values, what calibration does with it, and what reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import visq
from visq.artifact import load, save
from visq.calibrate.jobs import climb
from visq.errors import VisqError
from visq.integer.fused_scan import FusedScan
from visq.integer.ladder_scan import LadderScan
from visq.integer.spec import Granularity, Spec
from visq.models import create_model
from visq.native.extension import available
from visq.quant.ladder import LadderQuantizer, fit
from visq.quant.site import WEIGHT, Site, named_sites
from visq.recipes import get_recipe
from visq.runtime.bundle import read_bundle
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.operation_forms import form_of
from visq.runtime.oracle import Oracle

SPEC = Spec(bits=8, granularity="ladder")
GEOMETRY = dict(image_size=28, patch_size=9, stride=9, channels=1, embed_dim=16, depth=2, num_classes=10)


def ladder(scale: Tensor, states: int) -> Tensor:
    return (scale.double()[:, None] * torch.arange(1, states + 1)).log().float()


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 24))
@settings(max_examples=50, deadline=None)
def test_a_ladder_is_found_again(seed: int, channels: int, states: int) -> None:
    scale = torch.rand(channels, generator=torch.Generator().manual_seed(seed)) * 3 + 1e-3
    x = ladder(scale, states)
    found, away = fit(x)
    assert torch.allclose(found, scale, rtol=1e-6) and away < 1e-6
    quantizer = LadderQuantizer(SPEC, found)
    assert torch.allclose(quantizer(x), x, atol=1e-6)
    assert torch.equal(quantizer(quantizer(x)), quantizer(x)) and not quantizer.encode(x).any()


def test_the_fit_is_the_nearest_ladder_and_says_how_far_it_is() -> None:
    noise = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    x = ladder(torch.full((40,), 0.5), 8) + noise
    scale, away = fit(x)
    error = LadderQuantizer(SPEC, scale)(x) - x
    assert away == pytest.approx(float(error.square().mean().sqrt()), rel=1e-4)
    for other in (0.99, 1.01):
        assert (LadderQuantizer(SPEC, scale * other)(x) - x).square().mean() > error.square().mean()


def test_a_scan_that_has_strayed_keeps_its_codes_and_is_named() -> None:
    site = Site(WEIGHT, "A_log")
    x = ladder(torch.ones(20), 8)
    strayed = x + torch.randn(20, 8, generator=torch.Generator().manual_seed(0)) * 0.8
    assert isinstance(climb("a.a_log", site, SPEC, x), LadderQuantizer)
    spec, note = climb("a.a_log", site, SPEC, strayed)  # type: ignore[misc]
    assert spec.granularity.kind == "channel" and spec.bits == 8
    assert note.startswith("a.a_log: A is 0.7") and "more than 0.25" in note
    wide = SPEC.model_copy(update={"granularity": Granularity(kind="ladder", limit=2.0)})
    assert isinstance(climb("a.a_log", site, wide, strayed), LadderQuantizer)
    with pytest.raises(VisqError, match="a ladder is for A_log, not for weight"):
        climb("in_proj.weight", Site(WEIGHT), SPEC, x)


def test_other_channels_are_refused() -> None:
    with pytest.raises(VisqError, match=r"A_log of 3 channels, got \[4, 2\]"):
        LadderQuantizer(SPEC, torch.ones(3))(torch.zeros(4, 2))
    with pytest.raises(VisqError, match="a ladder's scale"):
        LadderQuantizer(SPEC, torch.tensor([1.0, 0.0]))


@pytest.fixture
def network() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model = create_model("vim", **GEOMETRY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "A_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.card = visq.load_model("vim_nano_fmnist").card
    return model, torch.randn(4, 1, 28, 28)


def strayed(model: Any) -> None:
    with torch.no_grad():
        model.layers[0].mixer.A_b_log.copy_(torch.randn_like(model.layers[0].mixer.A_b_log))


def quantized(model: Any, images: Tensor, folder: Path) -> Any:
    return visq.quantize(model, "visq-ladder-w8a8", images, held_out=0, out=folder, check=False)


@pytest.mark.skipif(not available(), reason="the C++ extension is not installed")
def test_simulation_oracle_and_engine_are_the_same_bits(network: tuple[Any, Tensor], tmp_path: Path) -> None:
    model, images = network
    strayed(model)
    result = quantized(model, images, tmp_path / "a")
    bundle = read_bundle(tmp_path / "a")
    program = bundle.config.program
    assert program is not None, bundle.config.no_program
    forms = {op.name: type(form_of(program, op, bundle)) for op in program.operations if "scan" in op.name}
    expected = dict.fromkeys(forms, LadderScan) | {"layers.0.mixer.scan_b": FusedScan}
    assert forms == expected
    logits = Oracle(program, bundle)(images.numpy())
    with torch.no_grad():
        assert np.array_equal(load(tmp_path / "a")(images).numpy(), logits)
        assert np.array_equal(result.model(images).numpy(), logits)
    assert np.array_equal(CpuEngine(program, bundle, threads=2)(images.numpy()), logits)


def test_an_artifact_holds_a_scale_a_channel_and_no_codes(network: tuple[Any, Tensor], tmp_path: Path) -> None:
    model, images = network
    quantized(model, images, tmp_path / "a")
    again = load(tmp_path / "a")
    save(again, tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    config = read_bundle(tmp_path / "a").config
    record = config.sites["layers.0.mixer.a_log"]
    assert record.quantizer["kind"] == "ladder" and record.codes is not None and record.codes.bits == 0
    assert config.tensors["layers.0.mixer.a_log.codes"] == ("U8", (0,))
    assert config.tensors["layers.0.mixer.a_log.scale"] == ("F32", (32,))
    row = next(row for row in config.coverage if row.kind == "a_log")
    assert (row.bits, row.granularity) == ((0,), ("ladder",))
    sites = dict(named_sites(again))
    assert isinstance(sites["layers.1.mixer.a_b_log"].quantizer, LadderQuantizer)


def test_coverage_says_which_scans_have_strayed(network: tuple[Any, Tensor], tmp_path: Path) -> None:
    model, images = network
    strayed(model)
    with pytest.warns(UserWarning, match="layers.0.mixer.a_b_log: A is .* keeps codes by channel"):
        quantized(model, images, tmp_path / "a")
    row = next(row for row in read_bundle(tmp_path / "a").config.coverage if row.kind == "a_log")
    assert (row.bits, row.granularity) == ((0, 8), ("channel", "ladder"))


def test_the_recipe_differs_from_visq_in_a_alone() -> None:
    names = [name for name, _ in named_sites(create_model("vim", **GEOMETRY))]
    found, plain = get_recipe("visq-ladder-w8a8").resolve(names), get_recipe("visq-w8a8-fused").resolve(names)
    different = {name for name in names if found.get(name) != plain.get(name)}
    assert different == {name for name in names if "a_log" in name or "a_b_log" in name}


@pytest.mark.parametrize("match", ["*.scan*.delta", "*.in_proj.weight"])
def test_a_ladder_elsewhere_is_refused(match: str, network: tuple[Any, Tensor], tmp_path: Path) -> None:
    model, images = network
    recipe = tmp_path / "mine.yaml"
    rule = f"{{match: '{match}', granularity: ladder}}"
    recipe.write_text(f"{{name: mine, title: t, default_scope: a, scopes: {{a: {{sites: [{rule}]}}}}}}")
    with pytest.raises(VisqError, match="a ladder is for A_log"):
        visq.quantize(model, recipe, images, held_out=0, check=False)
