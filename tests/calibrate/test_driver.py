"""The driver: every targeted site is quantized, the network survives, a killed run ends in the same bytes."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import visq
from visq.calibrate import calibrate
from visq.calibrate.stage_store import weights_digest
from visq.data import Dataset, open_dataset
from visq.data.dataset import mixed
from visq.errors import VisqError
from visq.models.vim import VisionMamba
from visq.quant.quantizer import StateQuantizer
from visq.quant.site import WEIGHT, named_sites, site_parameter
from visq.recipes import Recipe, get_recipe, load_method
from visq.recipes.catalog import make_recipe

from .conftest import Images


def state_of(model: VisionMamba) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("family", ["minmax", "minmax-channel", "similarity", "kscaled"])
@pytest.mark.parametrize("scope", ["linear", "full"])
def test_every_targeted_site_is_quantized(
    model: VisionMamba, images: Images, tmp_path: Path, family: str, scope: str
) -> None:
    recipe = get_recipe(f"{family}-w8a8" + ("" if scope == "full" else f"-{scope}"))
    reference = model(images.images)
    result = calibrate(model, recipe, images, work_dir=tmp_path / "work", batch_size=4)  # type: ignore[arg-type]
    sites = dict(named_sites(model))
    assert set(result.specs) == {name for name, site in sites.items() if site.quantizer is not None}
    for name in result.specs:
        if sites[name].kind == WEIGHT:
            assert sites[name].baked
            parameter = site_parameter(model, name, sites[name])
            torch.testing.assert_close(sites[name].quantizer(parameter), parameter, rtol=1e-5, atol=0)  # type: ignore[misc]
    error = (model(images.images) - reference).norm() / reference.norm()
    assert 0 < error < 0.15
    assert result.images == 12


def test_fewer_bits_are_less_exact(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    reference = model(images.images)
    errors = []
    for bits in (8, 6, 4):
        copied = copy.deepcopy(model)
        calibrate(copied, get_recipe(f"kscaled-w{bits}a{bits}"), images, work_dir=tmp_path / str(bits), batch_size=4)  # type: ignore[arg-type]
        errors.append(float((copied(images.images) - reference).norm()))
    assert errors[0] < errors[1] < errors[2]


def test_calibration_does_not_depend_on_how_images_are_batched_for_ranges(
    model: VisionMamba, images: Images, tmp_path: Path
) -> None:
    other = copy.deepcopy(model)
    calibrate(model, get_recipe("minmax-w8a8"), images, work_dir=tmp_path / "a", batch_size=3)  # type: ignore[arg-type]
    calibrate(other, get_recipe("minmax-w8a8"), images, work_dir=tmp_path / "b", batch_size=12)  # type: ignore[arg-type]
    for key, value in state_of(model).items():
        torch.testing.assert_close(state_of(other)[key], value, rtol=1e-4, atol=1e-6)


class Killed(Exception):
    pass


@pytest.mark.parametrize("recipe_name", ["minmax-w8a8", "kscaled-w4a4"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_killed_run_resumes_to_the_same_bytes(
    model: VisionMamba, images: Images, tmp_path: Path, recipe_name: str, stage: int
) -> None:
    recipe, whole, half = get_recipe(recipe_name), copy.deepcopy(model), copy.deepcopy(model)
    calibrate(whole, recipe, images, work_dir=tmp_path / "whole", batch_size=4)  # type: ignore[arg-type]

    def kill(done: int, total: int, name: str) -> None:
        if done == stage:
            raise Killed

    with pytest.raises(Killed):
        calibrate(half, recipe, images, work_dir=tmp_path / "half", batch_size=4, report=kill)  # type: ignore[arg-type]
    seen: list[int] = []
    calibrate(
        model,
        recipe,
        images,
        work_dir=tmp_path / "half",
        batch_size=4,
        resume=True,
        report=lambda done, *_: seen.append(done),  # type: ignore[arg-type]
    )
    assert seen == list(range(stage + 1, 5))
    assert same(state_of(model), state_of(whole))


@pytest.mark.parametrize("change", ["recipe", "seed", "data", "weights"])
def test_the_state_of_another_run_is_refused(model: VisionMamba, images: Images, tmp_path: Path, change: str) -> None:
    first = copy.deepcopy(model)
    calibrate(first, get_recipe("minmax-w8a8"), images, work_dir=tmp_path / "work", batch_size=4)  # type: ignore[arg-type]
    if change == "weights":
        model.head.bias += 1
    recipe = get_recipe("minmax-w6a6" if change == "recipe" else "minmax-w8a8")
    data = Images(images.images, "other") if change == "data" else images
    with pytest.raises(VisqError, match={"data": "calibration data", "weights": "model"}.get(change, change)):
        calibrate(
            model, recipe, data, work_dir=tmp_path / "work", seed=int(change == "seed"), batch_size=4, resume=True
        )  # type: ignore[arg-type]


def test_a_half_written_stage_is_done_again(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    """A kill between a stage's stream and its checkpoint leaves a stream that no checkpoint vouches for."""
    recipe, whole = get_recipe("minmax-w8a8"), copy.deepcopy(model)
    calibrate(whole, recipe, images, work_dir=tmp_path / "work", batch_size=4)  # type: ignore[arg-type]
    os.remove(tmp_path / "work" / "stage-002.safetensors")
    calibrate(model, recipe, images, work_dir=tmp_path / "work", batch_size=4, resume=True)  # type: ignore[arg-type]
    assert same(state_of(model), state_of(whole))


def test_no_images_is_an_error(model: VisionMamba, tmp_path: Path) -> None:
    with pytest.raises(VisqError, match="empty"):
        calibrate(model, get_recipe("minmax-w8a8"), Images(torch.zeros(0, 1, 12, 12)), work_dir=tmp_path / "w")  # type: ignore[arg-type]


def test_nan_in_a_weight_is_named(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    model.layers[1].mixer.out_proj.weight[0, 0] = float("nan")
    with pytest.raises(VisqError, match=r"layers\.1"):
        calibrate(model, get_recipe("minmax-w8a8-linear"), images, work_dir=tmp_path / "w", batch_size=4)  # type: ignore[arg-type]


def test_more_groups_than_tokens_is_named(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    with pytest.raises(VisqError, match=r"out_proj\.in: k=99 .* only 10"):
        calibrate(
            model, custom(tmp_path, {"kind": "token_groups", "k": 99}), images, work_dir=tmp_path / "w", batch_size=4
        )  # type: ignore[arg-type]


def custom(tmp_path: Path, granularity: dict[str, object]) -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"""
name: custom
title: one site
default_scope: linear
scopes:
  linear:
    sites: [{{match: "*.out_proj.in", granularity: {granularity}}}]
""")
    family = load_method(file)
    return make_recipe(family, family.bits, "linear")


def test_hidden_state_scales_follow_the_reparameterization(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    calibrate(model, get_recipe("kscaled-w8a8"), images, work_dir=tmp_path / "w", batch_size=4)  # type: ignore[arg-type]
    sites = dict(named_sites(model))
    quantizer = sites["layers.0.mixer.scan_b.h"].quantizer
    assert isinstance(quantizer, StateQuantizer)
    assert quantizer.step.shape == (10,)
    assert quantizer.step.unique().numel() > 1
    assert quantizer.channel.unique().numel() > 1
    assert torch.equal(quantizer.state, torch.ones(4))
    y = sites["layers.0.mixer.scan_b.y"].quantizer
    torch.testing.assert_close(y.smooth, quantizer.channel)  # type: ignore[union-attr]


def test_the_model_is_untouched_where_nothing_is_targeted(model: VisionMamba, images: Images, tmp_path: Path) -> None:
    digest = weights_digest(model)
    calibrate(model, get_recipe("fp32"), images, work_dir=tmp_path / "w", batch_size=4)  # type: ignore[arg-type]
    assert weights_digest(model) == digest


def sorted_by_class(count: int) -> Dataset:
    """Fashion-MNIST as a folder of classes would be: all images of a class, then those of the next."""
    data = open_dataset("fashion-mnist", visq.load_model("vim_nano_fmnist").card.preprocess, split="test")
    data = data.select(range(count))
    return data.select(sorted(range(count), key=data.labels.__getitem__))


def test_searches_see_images_of_all_classes() -> None:
    data = sorted_by_class(200)
    assert len(set(data.labels[:16])) == 1
    drawn = mixed(data, 16, seed=0)
    assert len(set(drawn.labels[:16])) > 5 and sorted(drawn.labels) == sorted(data.labels)
    assert drawn.labels == mixed(data, 16, seed=0).labels != mixed(data, 16, seed=1).labels
    assert mixed(data, None, seed=0) is data and mixed(data, 200, seed=0) is data


def test_the_order_of_the_files_does_not_choose_the_images_of_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Dataset] = []

    def stop(folder: Path, dataset: Dataset, batch_size: int) -> None:
        written.append(dataset)
        raise Killed

    monkeypatch.setattr("visq.calibrate.driver.write_images", stop)
    data, model = sorted_by_class(200), visq.load_model("vim_nano_fmnist")
    for recipe in ("kscaled-w8a8", "minmax-w8a8"):  # the first searches on 64 images, the second on none
        with pytest.raises(Killed):
            calibrate(model, get_recipe(recipe), data, work_dir=tmp_path / recipe)
    assert len(set(written[0].labels[:64])) == 10 and written[1] is data
