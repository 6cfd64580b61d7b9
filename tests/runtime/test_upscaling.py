"""Tests tiles: how they cover an image, and that an image of one tile is the network's whole answer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import visq
from tests.calibrate.conftest import Images
from visq.analysis.super_resolution import restore
from visq.errors import VisqError
from visq.models import create_model
from visq.native.extension import available
from visq.pipeline import quantize
from visq.recipes import get_recipe
from visq.runtime.upscaling import spans, upscale


@given(st.integers(1, 400), st.integers(1, 60), st.data())
def test_tiles_cover_a_side_once(side: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    found = spans(side, tile, overlap)
    assert [(a.high, a.end - a.first) for a in found[:-1]] == [(b.low, tile) for b in found[1:]]
    assert (found[0].low, found[-1].high) == (0, side)
    for span in found:
        assert 0 <= span.first <= span.low < span.high <= span.end <= side
        assert span.end - span.first == min(tile, side)
    for one, other in pairwise(found):
        assert one.end - other.first >= overlap


def test_an_overlap_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(VisqError, match="tiles of 8 pixels cannot overlap by 8; take an overlap from 0 to 7"):
        spans(20, 8, 8)


class Crops(Images):
    skipped: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("dvmsr", embed_dim=8, depths=[1], d_state=2, upscale=2).eval().requires_grad_(False)
    crops: Any = Crops(torch.rand(4, 3, 6, 6) - 0.4)
    folder = tmp_path_factory.mktemp("upscaling") / "a"
    quantize(model, get_recipe("minmax-w8a8").without_positions(), crops, out=folder)
    return folder


@pytest.mark.skipif(not available(), reason="needs the C++ extension")
def test_one_tile_is_the_whole_answer_and_several_are_close(artifact: Path) -> None:
    engine, simulation = visq.load(artifact, backend="int", threads=1), visq.load(artifact)
    image = np.random.default_rng(0).integers(0, 256, (13, 21, 3), dtype=np.uint8)
    exact = restore(simulation, image)
    assert np.array_equal(upscale(engine, image), exact)
    for tile, overlap in ((8, 4), (13, 0), (20, 19)):
        found = upscale(engine, image, tile=tile, overlap=overlap)
        assert found.shape == (26, 42, 3) and found.dtype == np.uint8
        assert np.abs(found.astype(int) - exact).mean() < 25
    corner = upscale(engine, image[:8, :8])
    found = upscale(engine, image, tile=8, overlap=4)
    assert np.array_equal(found[:10, :10], corner[:10, :10])
    with pytest.raises(VisqError, match=r"an image to enlarge is uint8 \[H, W, 3\], not float64 \[3, 3, 3\]"):
        upscale(engine, np.zeros((3, 3, 3)))  # type: ignore[arg-type]


def test_a_classifier_does_not_enlarge(tmp_path: Path) -> None:
    visq.quantize(
        "vim_nano_fmnist", "minmax-w8a8", "fashion-mnist", samples=2, held_out=0, check=False, out=tmp_path / "a"
    )
    with pytest.raises(VisqError, match="returns classes, not images; `visq predict`"):
        upscale(visq.load(tmp_path / "a", backend="int"), np.zeros((4, 4, 3), np.uint8))
