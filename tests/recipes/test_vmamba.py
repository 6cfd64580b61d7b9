"""Runs every packaged recipe on a VMamba: it quantizes what it names, and its artifact gives the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import visq
from visq.data import Dataset, open_dataset
from visq.models import create_model
from visq.pipeline import quantize
from visq.quant.site import named_sites
from visq.recipes import get_recipe
from visq.recipes.catalog import packaged_methods

GEOMETRY = {"image_size": 24, "embed_dim": 8, "depths": [1, 1], "mlp_ratio": 2, "num_classes": 5}
V0 = {**GEOMETRY, "mlp_ratio": 0, "forward_type": "v0", "d_state": 4, "expand": 2}
#: Learners that take many seconds are left to the slow run.
SLOW = ("adaround", "gptq", "ptq4vm")
SCOPES = [
    pytest.param(family.name, scope, marks=[pytest.mark.slow] * (family.name in SLOW or scope == "linear"))
    for family in packaged_methods().values()
    for scope in family.scopes
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(6):
        low = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(low).resize((24, 24), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return open_dataset(str(folder), create_model("vmamba", **GEOMETRY).card.preprocess, split="calib")


@pytest.mark.parametrize("family, scope", SCOPES)
def test_every_recipe_runs_and_its_artifact_gives_the_same_logits(
    family: str, scope: str, images: Dataset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = create_model("vmamba", **GEOMETRY).eval()
    pixels = torch.cat([batch for batch, _ in images.batches(4)])
    with torch.no_grad():
        exact = model(pixels)
        result = quantize(model, get_recipe(f"{family}-w8a8-{scope}"), images, out=tmp_path / "artifact")
        simulated = result.model(pixels)
        assert torch.equal(visq.load(tmp_path / "artifact")(pixels), simulated)
    assert float((simulated - exact).norm() / exact.norm()) < 0.25
    assert result.config is not None and result.config.program is not None, result.config


def test_full_scope_reaches_every_direction_the_mlp_and_both_ends() -> None:
    for geometry in (GEOMETRY, V0):
        sites = [name for name, _ in named_sites(create_model("vmamba", **geometry))]
        found = get_recipe("minmax-w4a4-full").resolve(sites)
        for direction in range(4):
            for site in ("x_proj.in", "x_proj.weight", "dt_proj.in", "scan.delta", "scan.h", "scan.y", "a_log"):
                assert f"layers.0.blocks.0.op.directions.{direction}.{site}" in found
        expected = {"patch_embed.steps.0.conv.in", "head.weight", "layers.1.blocks.0.op.conv2d.in"}
        gated = geometry is V0
        expected |= {"layers.0.downsample.reduction.weight" if gated else "layers.0.downsample.conv.weight"}
        expected |= {"layers.0.blocks.0.op.gate.out" if gated else "layers.0.blocks.0.mlp.fc2.in"}
        assert expected <= set(found)
        assert not [name for name in found if "norm" in name]


def test_per_token_scales_belong_to_each_directions_own_order(images: Dataset, tmp_path: Path) -> None:
    """The second direction reads columns: its token t is row t % H, column t // H of the first one's."""
    rule = {"match": "*.x_proj.in", "granularity": "token"}
    values = {"name": "own", "title": "t", "default_scope": "s", "scopes": {"s": {"sites": [rule]}}}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    torch.manual_seed(0)
    model = create_model("vmamba", **GEOMETRY).eval()
    quantize(model, get_recipe(path), images)
    directions = model.layers[0].blocks[0].op.directions
    rows, columns, back, up = (direction.x_proj.site_in.quantizer.scale.flatten() for direction in directions)
    assert rows.shape == (36,) and rows.unique().numel() > 1
    assert torch.equal(columns, rows.reshape(6, 6).T.flatten())
    assert torch.equal(back, rows.flip(0)) and torch.equal(up, columns.flip(0))
