"""Tests the image size that follows from the file, the tensors and the user's options."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from visq.errors import VisqError
from visq.models import VMamba, create_model, load_model, registry, save_checkpoint
from visq.models.checkpoint import official_parameters
from visq.models.family import family_of
from visq.models.positions import resize_positions

from .conftest import SMALL, randomized

Tensors = dict[str, Tensor]
TINY_VMAMBA = {"embed_dim": 8, "depths": (1, 1), "num_classes": 3}


def written(tensors: Tensors, tmp_path: Path, **rest: object) -> Path:
    path = tmp_path / "model.pth"
    torch.save({"model": tensors, **rest}, path)
    return path


def sized(**options: int) -> dict[str, object]:
    return {"args": argparse.Namespace(**options)}


# SMALL has patches of 4 side by side in images of 12, so 10 tokens.


@pytest.mark.parametrize("rest", [{}, sized(input_size=12)])
@pytest.mark.parametrize("name", [None, "vim"])
def test_positions_are_resampled_to_the_size_asked_for(
    small_tensors: Tensors, tmp_path: Path, rest: dict, name: str | None
) -> None:
    model = load_model(name, written(small_tensors, tmp_path, **rest), geometry={"image_size": 24})
    assert (model.config.image_size, model.config.stride, model.config.num_tokens) == (24, 4, 37)
    assert torch.equal(model.pos_embed, resize_positions(small_tensors["pos_embed"], 36))
    assert (model.card.preprocess.image_size, model.card.preprocess.resize) == (24, 24)
    note = "trained for images of 12 pixels and run at 24, as asked: positions were resampled bicubically from 3 x 3 to"
    assert any(note in text for text in model.card.notes)
    assert model(torch.zeros(1, 3, 24, 24)).isfinite().all()


def test_a_registered_model_at_another_size(tiny_tensors: Tensors, tmp_path: Path) -> None:
    path = written(tiny_tensors, tmp_path)
    model = load_model("vim_tiny", path, geometry={"image_size": 256})
    assert (model.config.num_tokens, model.card.preprocess.resize) == (257, 292)
    assert torch.equal(model.pos_embed[:, 128], tiny_tensors["pos_embed"][:, 98])
    with pytest.raises(VisqError, match=r"was trained for images of 224 pixels, not 256"):
        load_model("vim_tiny", path, geometry={"image_size": 256}, resample=False)
    with pytest.raises(VisqError, match="197 tokens, vim_tiny_stride8 at 256 pixels"):
        load_model("vim_tiny_stride8", path, geometry={"image_size": 256})


def test_the_preprocessing_keeps_its_statistics_at_another_size() -> None:
    card = load_model("vim_nano_fmnist", geometry={"image_size": 56}).card
    assert (card.preprocess.image_size, card.preprocess.resize, card.preprocess.mean) == (56, 56, (0.286,))
    card = load_model("vim_micro_imagenette", geometry={"image_size": 256}).card
    assert (card.preprocess.image_size, card.preprocess.resize) == (256, 292)


@pytest.mark.parametrize(
    ("rest", "geometry", "message"),
    [
        (sized(input_size=12), {"stride": 2}, r"args\.input_size says 12 pixels, but .*10 tokens, which does not fit"),
        (
            sized(input_size=56),
            {},
            r"args\.input_size says 56 pixels, but that would leave gaps between patches of 4 .*12 pixels",
        ),
        (sized(input_size=5), {}, r"args\.input_size says 5 pixels, but .*10 tokens, which does not fit images of 5"),
        ({}, {"image_size": 24, "stride": 4}, r"does not fit .*leave --stride out to have the positions resampled"),
        ({}, {"image_size": 20000}, r"the size asked for is 20000 pixels; 4096 pixels a side is the most"),
        (sized(input_size=20000), {}, r"args\.input_size is 20000 pixels; 4096 pixels a side is the most"),
        ({}, {"image_size": 3}, "does not fit images of 3 pixels"),
    ],
)
def test_contradictions_name_both_sides(
    small_tensors: Tensors, tmp_path: Path, rest: dict, geometry: dict, message: str
) -> None:
    with pytest.raises(VisqError, match=message):
        load_model("vim", written(small_tensors, tmp_path, **rest), geometry=geometry)


def test_our_file_s_stride_cannot_be_contradicted(small_file: Path) -> None:
    with pytest.raises(VisqError, match="--stride 2 contradicts its header, which says 4; leave it out"):
        load_model(None, small_file, geometry={"stride": 2})


def test_a_stride_alone_says_which_size_follows(small_tensors: Tensors, tmp_path: Path) -> None:
    card = load_model(None, written(small_tensors, tmp_path), geometry={"stride": 2}).card
    assert card.config.image_size == 8
    assert any("8 pixels follow from 10 tokens at stride 2" in note for note in card.notes)


def test_stale_options_yield_to_the_user(small_tensors: Tensors, tmp_path: Path) -> None:
    path = written(small_tensors, tmp_path, **sized(input_size=56))
    card = load_model(None, path, geometry={"image_size": 12}).card
    assert (card.config.image_size, card.config.stride) == (12, 4)
    assert any("args.input_size says 56 pixels, which does not fit; 12 do, as asked" in note for note in card.notes)


# VMamba, whose tensors do not tell the size.


def vmamba_tensors(**geometry: object) -> Tensors:
    torch.manual_seed(0)
    model = create_model("vmamba", **{**TINY_VMAMBA, "image_size": 16, **geometry})
    return family_of(model.config).pack(model.config, official_parameters(model))


def test_a_vmamba_runs_at_the_size_of_its_options(tmp_path: Path) -> None:
    path = written(vmamba_tensors(), tmp_path, config={"DATA": {"IMG_SIZE": 64}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model("vmamba", path).config.image_size == 64
    model = load_model("vmamba", path, geometry={"image_size": 96})
    assert isinstance(model, VMamba) and model.config.image_size == 96
    assert any("trained for images of 64 pixels and run at 96, as asked" in note for note in model.card.notes)


def test_a_vmamba_runs_at_the_size_of_the_registered_one(tmp_path: Path) -> None:
    model = load_model("vmamba_nano_imagenette")
    tensors = family_of(model.config).pack(model.config, official_parameters(model))
    card = load_model("vmamba", written(tensors, tmp_path)).card
    assert card.config.image_size == 96 and any("those of vmamba_nano_imagenette" in note for note in card.notes)


def test_a_guess_is_a_warning(tmp_path: Path) -> None:
    path = written(vmamba_tensors(), tmp_path)
    with pytest.warns(UserWarning, match=r"model\.pth: nothing says for which image size .* 224 is a guess"):
        assert load_model("vmamba", path).config.image_size == 224
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model("vmamba", path, geometry={"image_size": 64}).config.image_size == 64


def test_a_name_and_a_file_that_disagree(tmp_path: Path) -> None:
    model = load_model("vmamba_nano_imagenette")
    tensors = family_of(model.config).pack(model.config, official_parameters(model))
    path = written(tensors, tmp_path, config={"DATA": {"IMG_SIZE": 128}})
    with pytest.raises(VisqError, match=r"vmamba_nano_imagenette takes 96 pixels, config\.DATA\.IMG_SIZE says 128"):
        load_model("vmamba_nano_imagenette", path)
    assert load_model("vmamba_nano_imagenette", path, geometry={"image_size": 96}).config.image_size == 96


# Values and hostile headers.


def test_a_decay_that_is_infinite_is_refused(small_tensors: Tensors, tmp_path: Path) -> None:
    small_tensors["layers.1.mixer.A_b_log"][0, 0] = 200
    with pytest.raises(VisqError, match=r"layers\.1\.mixer\.A_b_log reaches 200, and A = -exp\(A_b_log\) is infinite"):
        load_model(None, written(small_tensors, tmp_path))
    small_tensors["layers.1.mixer.A_b_log"][0, 0] = 88.2
    assert load_model(None, written(small_tensors, tmp_path))
    tensors = vmamba_tensors()
    tensors["layers.0.blocks.0.op.A_logs"][0, 0] = 89
    with pytest.raises(VisqError, match=r"op\.A_logs reaches 89"):
        load_model("vmamba", written(tensors, tmp_path), geometry={"image_size": 64})


def test_a_header_that_describes_a_huge_network_takes_no_memory(tmp_path: Path) -> None:
    """Empty tensors ask for 2^40 states, or their names for 100,000 layers."""
    small = create_model("vim", **SMALL)
    tensors = {name: tensor.clone() for name, tensor in official_parameters(small).items()}
    for layer in range(2):
        for name in ("A_log", "A_b_log"):
            tensors[f"layers.{layer}.mixer.{name}"] = torch.zeros(0, 1 << 40)
    save_file(tensors, tmp_path / "states.safetensors")
    with pytest.raises(VisqError, match=r"states\.safetensors: .*A_log is \(0, 1099511627776\)"):
        load_model("vim", tmp_path / "states.safetensors")
    tensors = {name: tensor.clone() for name, tensor in official_parameters(small).items()}
    for count, message in ((100_000, "has 100,041 tensors"), (5_000, "names are those of 5,000 layers")):
        names = {f"layers.{i}.x": torch.zeros(0) for i in range(count)}
        save_file({**tensors, **names}, tmp_path / "layers.safetensors")
        with pytest.raises(VisqError, match=rf"layers\.safetensors.* {message}"):
            load_model("vim", tmp_path / "layers.safetensors")


@pytest.mark.parametrize(
    "notes", ["[" * 100_000, '{"a":' * 50_000, json.dumps({"image_size": 10**400}), json.dumps({"classes": ["a"] * 9})]
)
def test_hostile_notes(small_tensors: Tensors, tmp_path: Path, notes: str) -> None:
    save_file(small_tensors, tmp_path / "model.safetensors", metadata={"visq": notes})
    with pytest.raises(VisqError, match=r"model\.safetensors") as caught:
        load_model(None, tmp_path / "model.safetensors")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("shape", [(), (3,), (7, 1), (0, 1), (1, 1, 1)])
@pytest.mark.parametrize("name", ["x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"])
def test_vmamba_tensors_of_odd_shapes(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensors = vmamba_tensors()
    tensors[f"layers.0.blocks.0.op.{name}"] = torch.zeros(shape)
    with pytest.raises(VisqError, match=r"model\.pth"):
        load_model("vmamba", written(tensors, tmp_path), geometry={"image_size": 64})


def test_nothing_else_changes_at_the_native_size(tmp_path: Path) -> None:
    model = randomized(create_model("vim", **SMALL))
    save_checkpoint(model, tmp_path / "a.safetensors")
    same = load_model(None, tmp_path / "a.safetensors", geometry={"image_size": 12})
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(same(images), model(images)) and same.card.notes == ()
    assert registry.rescaled(model.card.preprocess, 12) == model.card.preprocess
