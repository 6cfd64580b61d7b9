"""Tests names, cards and random models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from visq.errors import VisqError
from visq.models import VimConfig, create_model, get_card, list_models

TAIL = "224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


@pytest.mark.parametrize(
    ("alias", "official", "embed_dim", "stride", "top1"),
    [
        ("vim_tiny", f"vim_tiny_patch16_{TAIL}", 192, 16, 76.1),
        ("vim_tiny_stride8", f"vim_tiny_patch16_stride8_{TAIL}", 192, 8, 78.3),
        ("vim_small", f"vim_small_patch16_{TAIL}", 384, 16, 80.5),
        ("vim_small_stride8", f"vim_small_patch16_stride8_{TAIL}", 384, 8, 81.6),
        ("vim_base", f"vim_base_patch16_{TAIL.replace('midclstok', 'middle_cls_token')}", 768, 16, 81.9),
    ],
)
def test_official_models(alias: str, official: str, embed_dim: int, stride: int, top1: float) -> None:
    card = get_card(official)
    assert card.config == VimConfig(embed_dim=embed_dim, stride=stride)
    assert (card.published_top1, card.weights, card.checkpoint_sha256) == (top1, None, None)
    assert (card.preprocess.image_size, card.preprocess.resize, card.preprocess.interpolation) == (224, 256, "bicubic")
    assert (card.preprocess.mean, card.preprocess.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert get_card(alias) == replace(card, name=alias, alias_of=official)


def test_the_list_names_every_card_once() -> None:
    names = [card.name for card in list_models()]
    assert len(set(names)) == len(names)
    assert [get_card(name).name for name in names] == names


@pytest.mark.parametrize(
    ("name", "close"), [("vim_tinny", "vim_tiny"), ("vim-small", "vim_small"), ("resnet", "known: ")]
)
def test_an_unknown_name_is_answered_with_close_ones(name: str, close: str) -> None:
    with pytest.raises(VisqError, match=f"unknown model '{name}'.*{close}"):
        create_model(name)


def test_a_plain_geometry() -> None:
    model = create_model(None, image_size=12, patch_size=4, stride=4, embed_dim=16, depth=1, num_classes=3, channels=1)
    assert model(torch.zeros(2, 1, 12, 12)).shape == (2, 3)
    assert model.card.config == model.config
    assert (model.card.preprocess.image_size, model.card.preprocess.channels) == (12, 1)


def test_overrides_drop_what_no_longer_holds() -> None:
    card = create_model("vim_tiny", depth=1, image_size=384, num_classes=10).card
    assert (card.config.depth, card.config.image_size, card.config.embed_dim) == (1, 384, 192)
    assert (card.preprocess.image_size, card.preprocess.resize) == (384, 438)
    assert card.published_top1 is None


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"deepth": 3}, "unknown geometry 'deepth'; known: image_size, .*depth"),
        ({"depth": 0}, "depth must be a positive whole number, not 0"),
        ({"depth": 1.0}, "depth must be a positive whole number, not 1.0"),
        ({"stride": True}, "stride must be a positive whole number, not True"),
        ({"drop_path": 1.0}, r"drop_path must be a rate in \[0, 1\), not 1.0"),
        ({"image_size": 8}, "image_size 8 is smaller than patch_size 16"),
        ({"channels": 4}, "images of 4 channels are not supported"),
    ],
)
def test_impossible_geometry(geometry: dict, message: str) -> None:
    with pytest.raises(VisqError, match=message):
        create_model("vim_tiny", **geometry)


def test_a_path_is_no_model_name(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    with pytest.raises(VisqError, match=r"unknown model '.*weights\.pth': it is a file; give a model's name"):
        create_model(str(tmp_path / "weights.pth"))
    with pytest.raises(VisqError, match="it is a folder; "):
        create_model(str(tmp_path))


def test_an_unknown_name_is_answered_in_a_line_that_can_be_read() -> None:
    with pytest.raises(VisqError, match="`visq models` lists them") as error:
        create_model("resnet")
    assert len(str(error.value)) < 250
