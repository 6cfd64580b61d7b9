"""Tests load_model: names, checkpoints, and every way in which they do not fit."""

from __future__ import annotations

import argparse
import hashlib
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from visq.data import Preprocess
from visq.errors import VisqError
from visq.models import VimConfig, VisionMamba, create_model, get_card, load_model, registry, save_checkpoint
from visq.models.checkpoint import official_parameters

from .conftest import SMALL

Tensors = dict[str, Tensor]
TINY = "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


def written(tensors: Tensors, tmp_path: Path, **rest: object) -> Path:
    path = tmp_path / "model.pth"
    torch.save({"model": tensors, **rest}, path)
    return path


def refused(message: str, name: str | None, path: Path, **arguments: object) -> None:
    with pytest.raises(VisqError, match=message) as caught:
        load_model(name, path, **arguments)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [None, "vim"])
def test_our_file_says_all_about_itself(small: VisionMamba, tmp_path: Path, name: str | None) -> None:
    path = tmp_path / "model.safetensors"
    grey = Preprocess(12, 14, mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2), interpolation="bilinear")
    save_checkpoint(small, path, preprocess=grey, classes=tuple("abcde"))
    model = load_model(name, path)
    assert not model.training
    assert (model.card.name, model.card.config, model.config) == ("vim", VimConfig(**SMALL), VimConfig(**SMALL))
    assert (model.card.preprocess, model.card.classes) == (grey, tuple("abcde"))
    assert model.card.checkpoint_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(model(images), small(images))


def test_arguments_win_over_the_file(small: VisionMamba, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(small, path, classes=tuple("abcde"))
    card = load_model(None, path, preprocess={"resize": 13, "mean": [0.1, 0.1, 0.1]}, classes=list("vwxyz")).card
    assert (card.preprocess.resize, card.preprocess.mean, card.classes) == (13, (0.1, 0.1, 0.1), tuple("vwxyz"))


@pytest.mark.parametrize("name", ["vim_tiny", TINY])
def test_official_name_and_file(tiny_tensors: Tensors, tmp_path: Path, name: str) -> None:
    halves = {key: tensor.half() for key, tensor in tiny_tensors.items()}
    path = written(halves, tmp_path, args=argparse.Namespace(model=TINY, input_size=224))
    model = load_model(name, path)
    assert (model.card.name, model.card.config, model.card.published_top1) == (name, VimConfig(), 76.1)
    assert torch.equal(model.layers[7].mixer.in_proj.weight, halves["layers.7.mixer.in_proj.weight"].float())


def test_loading_leaves_the_seed_alone(small_file: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(None, small_file)
    assert torch.equal(torch.rand(3), expected)


def test_weights_that_are_not_packaged() -> None:
    with pytest.raises(VisqError, match="weights of vim_small do not come with visq; pass --checkpoint"):
        load_model("vim_small")
    with pytest.raises(VisqError, match="model `vim` has no weights of its own; pass --checkpoint"):
        load_model(None)
    with pytest.raises(VisqError, match="unknown model 'vim_smal'; did you mean vim_small"):
        load_model("vim_smal")
    with pytest.raises(VisqError, match="unknown geometry 'classes'"):
        load_model("vim_tiny", geometry={"classes": 3})


# Image size and stride, which shapes do not tell.


@pytest.mark.parametrize(
    ("rest", "arguments", "size_and_stride"),
    [
        ({}, {}, (12, 4)),  # patches side by side
        ({}, {"geometry": {"stride": 2}}, (8, 2)),
        ({}, {"geometry": {"image_size": 10}}, (10, 4)),  # no usual stride fits: the positions are resampled
        ({}, {"geometry": {"image_size": 14}}, (14, 4)),  # no overlap wins where it fits
        ({}, {"geometry": {"image_size": 9, "stride": 2}}, (9, 2)),
        ({}, {"preprocess": {"image_size": 8, "resize": 8}}, (8, 2)),
        ({"args": argparse.Namespace(input_size=10)}, {}, (10, 3)),
        ({"args": argparse.Namespace(img_size=10)}, {}, (10, 3)),
        (
            {"args": argparse.Namespace(input_size=10)},
            {"geometry": {"image_size": 8}},
            (8, 3),
        ),  # the file's stride stays
        ({}, {"geometry": {"image_size": 15}}, (15, 4)),
        ({"args": argparse.Namespace(input_size=None, model=7)}, {}, (12, 4)),
    ],
)
def test_image_size_and_stride(
    small_tensors: Tensors, tmp_path: Path, rest: dict, arguments: dict, size_and_stride: tuple[int, int]
) -> None:
    card = load_model(None, written(small_tensors, tmp_path, **rest), **arguments).card
    assert (card.config.image_size, card.config.stride) == size_and_stride
    assert card.preprocess.image_size == size_and_stride[0]


def test_registered_geometry_settles_stride_8(tmp_path: Path) -> None:
    """730 tokens are 27 x 27 patches: 432 pixels side by side, or the 224 pixels at stride 8 that exist."""
    tensors = official_parameters(create_model("vim_tiny_stride8"))
    card = load_model("vim", written(tensors, tmp_path)).card
    assert (card.config.image_size, card.config.stride) == (224, 8)
    refused(
        "730 tokens, vim_tiny at 224 pixels and stride 16 has 197; 730 tokens fit 432 pixels at stride 16, "
        "224 pixels at stride 8, 120 pixels at stride 4; looks like vim_tiny_stride8",
        "vim_tiny",
        written(tensors, tmp_path),
    )
    other_depth = {key: tensor for key, tensor in tensors.items() if not key.startswith("layers.23.")}
    card = load_model("vim", written(other_depth, tmp_path, args=argparse.Namespace(input_size=224))).card
    assert (card.config.image_size, card.config.stride, card.config.depth) == (224, 8, 23)
    named = argparse.Namespace(model=TINY.replace("patch16_", "patch16_stride8_"))
    assert load_model("vim", written(other_depth, tmp_path, args=named)).card.config.stride == 8


def test_another_image_size_is_refused(small_tensors: Tensors, tmp_path: Path) -> None:
    path = written(small_tensors, tmp_path)
    fits = "10 tokens fit 12 pixels at stride 4, 8 pixels at stride 2, 6 pixels at stride 1"
    refused(
        f"10 tokens, which does not fit images of 24 pixels.* at stride 4; {fits}",
        None,
        path,
        geometry={"image_size": 24, "stride": 4},
    )
    refused(f"10 tokens, which does not fit images of 2 pixels.*; {fits}", None, path, geometry={"image_size": 2})
    small_tensors["pos_embed"] = torch.zeros(1, 12, 16)
    refused("12 tokens; 12 is no square number of patches plus one class token", None, written(small_tensors, tmp_path))


# Tensors that do not fit.


def test_another_model(tiny_tensors: Tensors, tmp_path: Path) -> None:
    path = written(tiny_tensors, tmp_path)
    shapes = r"layers\.0\.mixer\.in_proj\.weight is \(768, 192\), expected \(1536, 384\)"
    refused(rf"is not vim_small: {shapes}, .* and 409 more; looks like vim_tiny", "vim_small", path)
    refused("197 tokens, vim_tiny_stride8 .* has 730; .*looks like vim_tiny", "vim_tiny_stride8", path)


def test_another_geometry(small_file: Path) -> None:
    message = r"is not vim_tiny: 374 missing keys: layers\.2\..*; its shapes are those of a Vim .*--model vim"
    refused(message, "vim_tiny", small_file)


def test_another_head(tiny_tensors: Tensors, tmp_path: Path) -> None:
    tensors = {**tiny_tensors, "head.weight": torch.zeros(10, 192), "head.bias": torch.zeros(10)}
    path = written(tensors, tmp_path)
    refused(r"its head has 10 classes, vim_tiny has 1000; pass geometry=\{'num_classes': 10\}", "vim_tiny", path)
    assert load_model("vim_tiny", path, geometry={"num_classes": 10}).card.published_top1 is None


def test_another_number_of_channels(tiny_tensors: Tensors, tmp_path: Path) -> None:
    tensors = {**tiny_tensors, "patch_embed.proj.weight": torch.zeros(192, 1, 16, 16)}
    refused("it takes 1-channel images, vim_tiny 3-channel ones", "vim_tiny", written(tensors, tmp_path))
    assert load_model("vim_tiny", written(tensors, tmp_path), geometry={"channels": 1}).card.preprocess.channels == 1


@pytest.mark.parametrize("name", ["vim", "vim_tiny"])
def test_tokens_that_fit_no_image(tiny_tensors: Tensors, tmp_path: Path, name: str) -> None:
    for tokens in (0, 196):
        tensors = {**tiny_tensors, "pos_embed": torch.zeros(1, tokens, 192)}
        refused(f"has {tokens} tokens.*{tokens} is no square number", name, written(tensors, tmp_path))


@pytest.mark.parametrize("name", ["vim", "vim_tiny"])
def test_missing_and_unexpected_keys(tiny_tensors: Tensors, tmp_path: Path, name: str) -> None:
    tensors = dict(tiny_tensors)
    del tensors["layers.3.mixer.conv1d_b.bias"]
    message = r"is not \w+: 1 missing key: layers\.3\.mixer\.conv1d_b\.bias"
    refused(message + "; the rest fits", name, written(tensors, tmp_path))
    tensors["layers.3.mixer.conv1d_b.offset"] = torch.zeros(1)
    refused(message + r"; 1 unexpected key: layers\.3\.mixer\.conv1d_b\.offset", name, written(tensors, tmp_path))
    for i in range(9):
        tensors[f"extra.{i}"] = torch.zeros(1)
    refused(r"10 unexpected keys: .*, \.\.\.", name, written(tensors, tmp_path))


@pytest.mark.parametrize("name", ["vim", "vim_tiny"])
def test_wrong_shape(tiny_tensors: Tensors, tmp_path: Path, name: str) -> None:
    tensors = {**tiny_tensors, "layers.1.mixer.D": torch.zeros(3)}
    refused(r"layers\.1\.mixer\.D is \(3,\), expected \(384,\)", name, written(tensors, tmp_path))


@pytest.mark.parametrize("shape", [(), (7,), (768, 0), (0, 192), (770, 192)])
def test_shapes_that_say_nothing(tiny_tensors: Tensors, tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {**tiny_tensors, "layers.0.mixer.in_proj.weight": torch.zeros(shape)}
    refused("not a Vim checkpoint", "vim", written(tensors, tmp_path))
    refused("is not vim_tiny: layers.0.mixer.in_proj.weight is", "vim_tiny", written(tensors, tmp_path))


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file({f"layer{i}.conv.weight": torch.zeros(3) for i in range(9)}, path)
    refused("not a Vim checkpoint: cls_token, .*it has layer0.conv.weight", None, path)
    refused("is not vim_tiny: .* missing keys: .*; 9 unexpected keys: .*not a Vim checkpoint", "vim_tiny", path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(small_tensors: Tensors, tmp_path: Path, value: float) -> None:
    small_tensors["layers.1.mixer.x_proj.weight"][2, 3] = value
    small_tensors["head.bias"][0] = value
    message = r"NaN or infinite weights in head\.bias, layers\.1\.mixer\.x_proj\.weight"
    path = tmp_path / "model.safetensors"
    save_file(dict(sorted(small_tensors.items())), path)
    refused(message, None, path)


# Variants of the public code that visq refuses.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls_token": None, "cls_token_head": (1, 1, 16), "cls_token_tail": (1, 1, 16)}, "two class tokens"),
        ({"cls_token": None}, "no class token"),
        ({"pos_embed": None}, "no absolute position embedding"),
        ({"rope.freqs_cos": (9, 16)}, "rotary"),
        ({"layers.0.mixer.gamma": (16,)}, "layer scale"),
        ({"norm_f.bias": (16,)}, "LayerNorm"),
        ({"layers.0.mixer.A_b_log": None}, "one direction"),
        ({"layers.0.mixer.conv1d_b.weight": None}, "bimamba v1"),
    ],
)
@pytest.mark.parametrize("name", ["vim", "vim_tiny"])
def test_variants_are_refused(small_tensors: Tensors, tmp_path: Path, name: str, changes: dict, message: str) -> None:
    for key, shape in changes.items():
        if shape is None:
            del small_tensors[key]
        else:
            small_tensors[key] = torch.zeros(shape)
    refused(f"this Vim variant is not supported: .*{message}", name, written(small_tensors, tmp_path))


@pytest.mark.parametrize(
    ("official", "message"),
    [
        (TINY.replace("midclstok", "cls_token"), "class token is not in the middle"),
        (TINY.replace("_div2", ""), "added, not averaged"),
    ],
)
def test_variants_that_only_their_name_gives_away(
    small_tensors: Tensors, tmp_path: Path, official: str, message: str
) -> None:
    refused(message, None, written(small_tensors, tmp_path, args=argparse.Namespace(model=official)))


# Preprocessing and classes.


def test_preprocessing_must_fit_the_model(small_file: Path) -> None:
    refused(
        "takes 3x12x12 images, the preprocessing makes 1x12x12",
        None,
        small_file,
        preprocess={"channels": 1, "mean": [0.5], "std": [0.5]},
    )
    with pytest.raises(VisqError, match="preprocess: unknown key colour"):
        load_model(None, small_file, preprocess={"colour": 1})


@pytest.mark.parametrize("value", ["12", 12.5, True, -4])
def test_preprocessing_of_the_wrong_type(small_file: Path, value: object) -> None:
    with pytest.raises(VisqError, match="image_size must be a positive whole number"):
        load_model(None, small_file, preprocess={"image_size": value})


def test_classes_must_fit_the_head(small_file: Path) -> None:
    refused("3 class names for a head of 5 classes", None, small_file, classes=["a", "b", "c"])


def test_a_packaged_model_takes_its_geometry_from_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PRETRAINED", tmp_path)
    with pytest.raises(VisqError, match=r"packaged weights vim_nano_fmnist\.safetensors are missing"):
        load_model("vim_nano_fmnist")
    geometry = {
        "image_size": 28,
        "patch_size": 7,
        "stride": 3,
        "channels": 1,
        "embed_dim": 16,
        "depth": 1,
        "num_classes": 10,
    }
    save_checkpoint(create_model("vim", **geometry), tmp_path / "vim_nano_fmnist.safetensors")
    assert get_card("vim_nano_fmnist").config == VimConfig(**geometry)


def test_larger_models_come_with_a_package_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(VisqError, match=r"comes with the package visq-models, which is not installed: pip install"):
        load_model("vim_tiny_imagenette")
    assert "vim_tiny_imagenette" in [card.name for card in registry.list_models()]
    spec = ModuleSpec("visq_models", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(registry, "find_spec", lambda name: spec)
    save_checkpoint(
        create_model("vim", depth=1, embed_dim=16, num_classes=3), tmp_path / "vim_tiny_imagenette.safetensors"
    )
    assert load_model("vim_tiny_imagenette").config.embed_dim == 16


def test_the_packaged_model_loads() -> None:
    card = get_card("vim_nano_fmnist")
    assert (card.preprocess, len(card.classes or ())) == (Preprocess.fashion_mnist(), 10)
    assert (card.config.image_size, card.config.channels, card.config.num_classes) == (28, 1, 10)
    if (registry.PRETRAINED / "vim_nano_fmnist.safetensors").exists():
        model = load_model("vim_nano_fmnist")
        assert (model.card.preprocess, model.card.classes) == (card.preprocess, card.classes)
