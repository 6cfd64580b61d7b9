"""Tests that a saved model loads with the same bits, and that the artifact is small and describes itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from visq import artifact, ops
from visq.artifact.coverage import coverage_rows
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.models import VisionMamba
from visq.quant.rotated import RotatedQuantizer
from visq.quant.site import WEIGHT, named_sites
from visq.simulation import deploy

Build = Callable[..., VisionMamba]
needs_scan = pytest.mark.skipif(not hasattr(ops, "quantized_scan"), reason="the quantized scan is not there yet")


@pytest.mark.parametrize("inner", [False, pytest.param(True, marks=needs_scan)])
def test_loaded_model_gives_the_same_bits(quantized: Build, images: Tensor, tmp_path: Path, inner: bool) -> None:
    model = deploy(quantized(inner=inner))
    expected = model(images)
    artifact.save(model, tmp_path / "a")
    rng = torch.get_rng_state()
    loaded = artifact.load(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), rng)
    assert not loaded.training and torch.equal(loaded(images), expected)
    sites, original = dict(named_sites(loaded)), dict(named_sites(model))
    for name, site in original.items():
        assert (site.quantizer is None) == (sites[name].quantizer is None), name
        assert sites[name].baked == (site.kind == WEIGHT), name
        if site.quantizer is not None:
            restored = dict(sites[name].quantizer.named_buffers())
            for part, tensor in site.quantizer.named_buffers():
                assert torch.equal(restored[part], tensor) and restored[part].dtype == tensor.dtype, (name, part)
    assert loaded.card.preprocess == model.card.preprocess and loaded.card.classes == model.card.classes
    assert loaded.recipe == model.recipe and loaded.provenance == model.provenance


def test_saving_again_gives_the_same_bytes(quantized: Build, tmp_path: Path) -> None:
    artifact.save(quantized(), tmp_path / "a")
    artifact.save(quantized(), tmp_path / "b")
    artifact.save(artifact.load(tmp_path / "a"), tmp_path / "c")
    for name in ("config.json", "model.safetensors"):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_weights_that_were_not_baked_are_saved_as_their_codes(quantized: Build, images: Tensor, tmp_path: Path) -> None:
    model = quantized(inner=False)
    for _, site in named_sites(model):
        site.baked = False
    expected = deploy(model)(images)
    artifact.save(model, tmp_path / "a")
    assert torch.equal(artifact.load(tmp_path / "a")(images), expected)


def test_integers_are_really_packed(quantized: Build, tmp_path: Path) -> None:
    artifact.save(quantized(), tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text())
    seen = set()
    for name, site in config["sites"].items():
        if site["kind"] == "weight":
            bits, count = site["codes"]["bits"], int(torch.tensor(site["codes"]["shape"]).prod())
            seen.add(bits)
            assert config["tensors"][f"{name}.codes"] == ["U8", [-(-bits * count // 8)]]
    assert seen == set(range(2, 9))
    small = {key.rpartition(".")[2]: dtype for key, (dtype, _) in config["tensors"].items()}
    assert (
        small["group"] == small["zero_point"] == "U8" and small["scale"] == small["smooth"] == small["table"] == "F32"
    )


def test_config_says_what_it_is(quantized: Build, tmp_path: Path) -> None:
    saved = artifact.save(quantized(), tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert (
        config["schema_version"] == 1
        and config["recipe"]["scope_name"] == "full"
        and config["recipe"]["bits"]["weight"] == 8
    )
    assert config["provenance"]["calibration"]["images"] == 8
    assert config["architecture"]["family"] == "vim" and config["architecture"]["geometry"]["embed_dim"] == 16
    assert artifact.verify(tmp_path / "a") == saved
    rows = {row["kind"]: row for row in config["coverage"]}
    assert rows["in_proj.weight"] == {**rows["in_proj.weight"], "sites": 2, "targeted": 2, "quantized": 2}
    assert rows["scan.h"]["sites"] == 4 and rows["norm.out"]["targeted"] == 0
    assert artifact.artifact_bytes(tmp_path / "a") == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())


def test_coverage_refuses_what_the_recipe_does_not_say(quantized: Build) -> None:
    model = quantized()
    sites = dict(named_sites(model))
    site = sites["layers.1.mixer.in_proj.in"]
    site.quantizer = None
    with pytest.raises(VisqError, match=r"without a quantizer: layers\.1\.mixer\.in_proj\.in"):
        coverage_rows(model, model.recipe)
    model = quantized()
    sites = dict(named_sites(model))
    sites["layers.1.norm.out"].quantizer = sites["layers.1.mixer.in_proj.in"].quantizer
    with pytest.raises(VisqError, match=r"does not name: layers\.1\.norm\.out"):
        coverage_rows(model, model.recipe)


def test_equal_rotations_are_stored_once(quantized: Build, images: Tensor, tmp_path: Path) -> None:
    model = quantized(inner=False)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0].float()
    for layer in (0, 1):
        site = dict(named_sites(model))[f"layers.{layer}.mixer.in_proj.in"]
        site.quantizer = RotatedQuantizer(Spec(bits=site.quantizer.spec.bits), torch.tensor([0.1]), rotation=rotation)
    expected = model(images)
    config = artifact.save(model, tmp_path / "a")
    stored = "layers.0.mixer.in_proj.in.rotation"
    assert config.shared == {"layers.1.mixer.in_proj.in.rotation": stored} and stored in config.tensors
    assert torch.equal(artifact.load(tmp_path / "a")(images), expected)


def test_a_weight_that_changed_after_quantization_is_refused(quantized: Build, tmp_path: Path) -> None:
    model = quantized()
    model.layers[0].mixer.in_proj.weight.data[0, 0] += 1e-3
    with pytest.raises(VisqError, match=r"layers\.0\.mixer\.in_proj\.weight: the weight changed"):
        artifact.save(model, tmp_path / "a")
    model = quantized()
    model.cls_token.data[0, 0, 0] = float("nan")
    with pytest.raises(VisqError, match="cls_token holds NaN"):
        artifact.save(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
