"""Small networks as flat files, and damage to them."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import visq
from visq.data import Preprocess
from visq.export import export
from visq.models import create_model
from visq.models.family import family_of, image_size, num_classes
from visq.models.registry import get_card
from visq.native.flat_file import aligned, checksum
from visq.recipes import get_recipe

#: One recipe for each form of scan, weight and codec: fused, fixed, float32, table, rotation, ladder, 8 and 4 bits.
RECIPES = (
    *("visq-w8a8-fused", "kscaled-w4a4", "minmax-w8a8-linear", "qmamba-w4a4", "visq-rotated-w4a4-fused"),
    "visq-ladder-w8a8",
)
NETWORKS = {
    "vim": dict(image_size=28, patch_size=9, stride=9, channels=1, embed_dim=16, depth=1, d_state=4, num_classes=10),
    "vmamba": dict(image_size=28, channels=1, embed_dim=16, depths=(1,), num_classes=10),
    # Operations of their own: attention, windows; samples, merges, gates; turns; averages, bilinear; a shuffle.
    "mambavision": dict(
        **dict(image_size=32, channels=1, stem_dim=4, embed_dim=8, depths=(1, 1, 2, 2), num_heads=(2, 4), d_state=4),
        **dict(windows=(2, 1), num_classes=10),
    ),
    "efficientvmamba": dict(
        **dict(image_size=28, channels=1, dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), d_state=4, hidden_ratio=2),
        **dict(num_classes=10),
    ),
    "localvim": dict(
        **dict(image_size=28, patch_size=7, channels=1, embed_dim=16, depth=1, d_state=4, reduced=4),
        **dict(directions=("h v_flip w2 w2_flip",), num_classes=10),
    ),
    "vmamba_seg": dict(channels=1, embed_dim=8, depths=(1, 1), mlp_ratio=1, head="upernet", head_dim=8, num_classes=10),
    "dvmsr": dict(embed_dim=8, depths=(1,), d_state=2, upscale=2),
}
#: Each recipe once; the other pairs are slow tests.
QUICK = tuple(zip(("vim", "vim", "vmamba", "vim", "vmamba", "vim"), RECIPES, strict=True))
#: The networks with operations of their own: in float32, with 8 and 4 bits. Calibration without a search is quick.
OTHERS = [
    (network, recipe)
    for network in list(NETWORKS)[2:]
    for recipe in ("minmax-w8a8-linear", "minmax-w8a8-full", "minmax-w4a4-full")
]
PAIRS = [
    pytest.param(pair, marks=[] if pair in QUICK else [pytest.mark.slow])
    for pair in [*((network, recipe) for network in list(NETWORKS)[:2] for recipe in RECIPES), *OTHERS]
]


def small(network: str) -> Any:
    """Returns a network with random weights; its card says the size of the images it is tested with."""
    torch.manual_seed(0)
    model = create_model(network, **NETWORKS[network])
    model = family_of(model.config).fold(model.eval())
    card, channels = get_card("vim_nano_fmnist"), model.config.channels
    side = image_size(model.config) or 28
    values = dict(mean=card.preprocess.mean * channels, std=card.preprocess.std * channels, channels=channels)
    preprocess = replace(card.preprocess, image_size=side, resize=side, **values)
    model.card = replace(card, preprocess=preprocess, classes=card.classes if num_classes(model.config) else None)
    return model


def make(network: str, recipe: str, folder: Path) -> tuple[Path, Path]:
    """Returns an artifact with random weights, and its flat file."""
    model = small(network)
    side, any_size = model.card.preprocess.image_size, family_of(model.config).any_size
    artifact, file = folder / "artifact", folder / "net.visq"
    chosen = get_recipe(recipe).without_positions() if any_size else get_recipe(recipe)
    noise = np.random.default_rng(1).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    data = "fashion-mnist" if model.config.channels == 1 else noise
    visq.quantize(model, chosen, data, samples=4, out=artifact, check=False)
    export(artifact, file, format="visq", threads=1, size=(side, side) if any_size else None)
    return artifact, file


def as_stored(results: np.ndarray) -> np.ndarray:
    """Returns an engine's results in the library's layout: of maps [batch, height, width, channels]."""
    return results if results.ndim == 2 else results.transpose(0, 2, 3, 1)


def make_enlarger(folder: Path) -> tuple[Path, Path]:
    """Returns an artifact that enlarges images twice, and its flat file for images of 9 x 12 pixels."""
    torch.manual_seed(0)
    model = create_model("dvmsr", embed_dim=8, depths=[1], d_state=2, upscale=2)
    torch.save({"params": model.state_dict()}, folder / "net.pth")
    (folder / "calib").mkdir()
    for name in "ab":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "calib" / f"{name}.png")
    sizes = dict(geometry={"image_size": 6}, preprocess={"resize": 8})
    model = visq.load_model("dvmsr", checkpoint=folder / "net.pth", **sizes)
    recipe = get_recipe("minmax-w8a8").without_positions()
    artifact, file = folder / "artifact", folder / "net.visq"
    visq.quantize(model, recipe, folder / "calib", samples=2, out=artifact, check=False)
    export(artifact, file, format="visq", size=(9, 12), threads=1)
    return artifact, file


def make_segmenter(folder: Path) -> tuple[Path, Path]:
    """Returns an artifact that gives each position one of three classes, and its flat file for 18 x 30 pixels."""
    torch.manual_seed(0)
    model = create_model("vmamba_seg", embed_dim=8, depths=(1, 1), mlp_ratio=1, head_dim=8, num_classes=3)
    card, names = model.card, ("road", "sky", "tree")
    model.card = replace(card, config=model.config, preprocess=Preprocess.imagenet(16, 16), classes=names)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    artifact, file = folder / "artifact", folder / "net.visq"
    visq.quantize(model.eval(), "minmax-w8a8", images, samples=2, held_out=0, check=False, out=artifact)
    export(artifact, file, format="visq", size=(18, 30), threads=1)
    return artifact, file


def patched(content: bytes, at: int, data: bytes, mend: bool = True) -> bytes:
    """Returns a file with other bytes at `at`; `mend` makes the checksum fit them."""
    whole = aligned(len(content))
    whole[:] = np.frombuffer(content, np.uint8)
    whole[at : at + len(data)] = np.frombuffer(data, np.uint8)
    if mend:
        whole[24:32] = np.frombuffer(struct.pack("<Q", checksum(whole)), np.uint8)
    return whole.tobytes()
