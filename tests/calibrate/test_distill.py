"""Distillation: the held-back loss falls, weights end on their grid, killed runs resume to the last byte."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import visq
from visq.calibrate import Calibration, calibrate
from visq.calibrate.learners import distill
from visq.calibrate.learners.distill import Distill, distance, outputs
from visq.data import open_dataset
from visq.errors import VisqError
from visq.models import create_model
from visq.models.stage import alike
from visq.models.vim import VisionMamba
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.site import WEIGHT, named_sites, site_parameter
from visq.recipes import Recipe, get_recipe

from .conftest import Images
from .test_jlss import Killed, assert_same, everything

BASE = "visq-w4a4"


def recipe(base: str = BASE, others: tuple[str, ...] = (), **params: Any) -> Recipe:
    found = get_recipe(base)
    learner = {"name": "distill", "epochs": 3, "batch": 4, "holdout": 0, "lr": 3e-4, **params}
    return Recipe.model_validate(
        found.model_dump() | {"scope": found.scope.model_dump() | {"learners": [*others, learner]}}
    )


def run(model: VisionMamba, images: Images, folder: Path, chosen: Recipe | None = None, **options: Any) -> Calibration:
    return calibrate(model, chosen or recipe(), images, work_dir=folder, batch_size=4, **options)  # type: ignore[arg-type]


@pytest.fixture
def model(model: VisionMamba) -> VisionMamba:
    """The random network with logits as large as a trained one's."""
    model.head.weight.data.mul_(30)
    return model


@pytest.fixture
def images() -> Images:
    return Images(torch.randn(24, 1, 12, 12, generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
@pytest.mark.slow
def test_a_trained_network_comes_closer_to_fp32_on_its_images(tmp_path: Path) -> None:
    """On images it has not seen it may not: docs/methods/visq.md."""
    exact = visq.load_model("vim_nano_fmnist")
    plain, learned = copy.deepcopy(exact), copy.deepcopy(exact)
    images = open_dataset("fashion-mnist", exact.card.preprocess, split="calib").subset(48, 0)
    lines: list[str] = []
    calibrate(plain, get_recipe(BASE), images, work_dir=tmp_path / "plain")
    options: dict[str, Any] = {"work_dir": tmp_path / "learned", "report": lambda *told: lines.append(told[2])}
    calibrate(learned, recipe(epochs=3), images, **options)
    pixels = next(iter(images.batches(48)))[0]
    targets = exact(pixels)
    assert distance(learned(pixels), targets) < 0.7 * distance(plain(pixels), targets)
    assert lines[-1].startswith("distilling, epoch 3 of 3 (held-back loss ")


def test_weights_end_on_their_grid_and_the_rest_in_float16(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    before = everything(model)
    run(model, images, tmp_path)
    after = everything(model)
    coded = set()
    for name, site in named_sites(model):
        if site.kind == WEIGHT and site.quantizer is not None:
            parameter = site_parameter(model, name, site)
            coded.add(id(parameter))
            torch.testing.assert_close(site.quantizer(parameter), parameter, rtol=1e-6, atol=0)
            assert site.baked
    free = {name: p for name, p in model.named_parameters() if id(p) not in coded}
    assert free and all(torch.equal(p, p.half().float()) for p in free.values())
    assert not any(p.requires_grad for p in model.parameters())
    moved = [name for name in free if not torch.equal(after[name], before[name].half().float())]
    assert {"layers.0.norm.weight", "layers.1.mixer.D", "head.bias"} <= set(moved)


def test_which_scales_are_learned(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    untouched = copy.deepcopy(model)
    run(untouched, images, tmp_path / "0", recipe(epochs=0))
    run(model, images, tmp_path / "1", recipe(epochs=2))
    old, new = dict(named_sites(untouched)), dict(named_sites(model))
    for name, site in new.items():
        quantizer, before = site.quantizer, old[name].quantizer
        if isinstance(quantizer, StateQuantizer) or name.endswith((".abar", ".bbar")):
            assert_same(dict(quantizer.named_buffers()), dict(before.named_buffers()))  # type: ignore[union-attr]
        elif isinstance(quantizer, Quantizer):
            assert not torch.equal(quantizer.scale, before.scale), name  # type: ignore[union-attr]
            assert quantizer.zero_point is None or torch.equal(quantizer.zero_point, before.zero_point)  # type: ignore


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_killed_run_resumes_to_the_same_bytes(model: VisionMamba, images: Images, tmp_path: Path, epoch: int) -> None:
    whole, killed = copy.deepcopy(model), copy.deepcopy(model)
    chosen = recipe(blocks=1.0, mirror=0.5, crop=0.3)
    run(whole, images, tmp_path / "whole", chosen)

    def kill(done: int, total: int, line: str) -> None:
        if line.startswith(f"distilling, epoch {epoch} "):
            raise Killed

    with pytest.raises(Killed):
        run(killed, images, tmp_path / "killed", chosen, report=kill)
    lines: list[str] = []
    run(model, images, tmp_path / "killed", chosen, resume=True, report=lambda *told: lines.append(told[2]))
    assert len(lines) == 3 - epoch
    assert_same(everything(model), everything(whole))


def test_a_damaged_state_is_named(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    run(copy.deepcopy(model), images, tmp_path)
    (tmp_path / "distill.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(VisqError, match=r"distill\.safetensors is damaged; delete"):
        run(model, images, tmp_path, resume=True)


def test_divergence_keeps_the_best_state_and_says_so(
    model: VisionMamba, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = copy.deepcopy(model)
    run(plain, images, tmp_path / "plain", recipe(epochs=0))
    notes = run(model, images, tmp_path / "wild", recipe(lr=1e20)).notes
    assert any("distill: NaN or Inf in epoch" in note or "did not fall" in note for note in notes), notes
    assert_same(everything(model), everything(plain))


def test_simulation_and_engine_have_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(
        "vim", image_size=28, patch_size=7, stride=7, channels=1, embed_dim=16, depth=1, num_classes=10
    )
    model.card = visq.load_model("vim_nano_fmnist").card
    data = open_dataset("fashion-mnist", model.card.preprocess, split="calib").subset(8, 0)
    chosen = recipe("visq-rotated-w4a4-fused", ("adaround",))
    result = visq.quantize(model, chosen, data, out=tmp_path / "a")
    images = next(iter(data.batches(8)))[0]
    engine = visq.load(tmp_path / "a", backend="int", threads=1)
    assert np.array_equal(engine(images.numpy()), result(images).numpy())


def test_outputs_that_are_images_are_compared_by_their_squares() -> None:
    exact = torch.tensor([[[[1.0, 3.0]]]])
    assert float(distance(exact + 1, exact)) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("params", "looks"), [({}, False), ({"mirror": 0.5}, True), ({"crop": 0.5}, True), ({"blocks": 1.0}, True)]
)
def test_fp32_computes_again_only_what_its_stored_logits_do_not_tell(
    model: VisionMamba,
    images: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    params: dict[str, Any],
    looks: bool,
) -> None:
    seen: list[nn.Module] = []
    monkeypatch.setattr(distill, "outputs", lambda network, x: (seen.append(network), outputs(network, x))[1])
    run(model, images, tmp_path, recipe(epochs=1, **params))
    assert model in seen and (len({id(network) for network in seen}) == 2) == looks


@torch.no_grad()
def test_the_stages_errors_count_beside_the_outputs(model: VisionMamba) -> None:
    images = torch.randn(4, 1, 12, 12)
    exact = outputs(model, images)
    assert torch.equal(exact[-1][0], model(images)) and len(exact) == len(model.stages())
    assert float(Distill(blocks=1.0).loss(exact, exact)) == pytest.approx(0, abs=1e-6)
    found = [tuple(2 * tensor for tensor in state) for state in exact[:-1]] + [exact[-1]]
    # The residual of the first block is zero, and so is its error.
    errors = [np.mean([float(tensor.any()) for tensor in alike(state)]) for state in exact[:-1]]
    assert float(Distill(blocks=0.5).loss(found, exact)) == pytest.approx(0.5 * np.mean(errors))
    assert float(Distill().loss(found, exact)) == pytest.approx(0, abs=1e-6)


SETTINGS = [
    ({"epochs": -1}, "epochs >= 0"),
    ({"holdout": 1.0}, "holdout < 1"),
    ({"drop": -0.1}, "drop < 1"),
    ({"blocks": -1.0}, "blocks >= 0"),
    ({"crop": 1.0}, "crop < 1"),
    ({"average": 1}, "average < 1"),
]


@pytest.mark.parametrize(("params", "words"), SETTINGS)
def test_settings_out_of_range(params: dict[str, Any], words: str) -> None:
    with pytest.raises(VisqError, match=words):
        Distill(**params)
