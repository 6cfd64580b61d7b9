"""Tests position embeddings that are resampled to another resolution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from visq.errors import VisqError
from visq.models import create_model, save_checkpoint
from visq.models.positions import load_other_resolution, resize_positions

GEOMETRY = {"patch_size": 4, "stride": 4, "channels": 1, "embed_dim": 16, "depth": 1, "d_state": 4, "num_classes": 3}


def test_the_same_number_changes_nothing() -> None:
    positions = torch.randn(1, 10, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(resize_positions(positions, 9), positions, atol=1e-6)


def test_a_plane_stays_a_plane_and_the_class_token_stays() -> None:
    """Positions that grow linearly stay linear at twice the resolution, except at the borders."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    grid = torch.stack([rows, columns], -1).reshape(1, 64, 2)
    cls_token = torch.tensor([[[100.0, -100.0]]])
    resized = resize_positions(torch.cat([grid[:, :32], cls_token, grid[:, 32:]], 1), 256)
    assert torch.equal(resized[:, 128], cls_token[:, 0])
    patches = torch.cat([resized[:, :128], resized[:, 129:]], 1).reshape(16, 16, 2)
    expected = torch.arange(16.0) / 2 - 0.25
    assert torch.allclose(patches[4:12, 8, 0], expected[4:12], atol=0.06)  # torch's cubic is not exact on lines
    assert torch.allclose(patches[8, 4:12, 1], expected[4:12], atol=0.06)  # torch's cubic is not exact on lines


def test_what_is_not_square_is_refused() -> None:
    with pytest.raises(VisqError, match="must be squares"):
        resize_positions(torch.zeros(1, 8, 4), 9)


def test_loading_another_resolution(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    small = create_model("vim", image_size=12, **GEOMETRY)
    save_checkpoint(small, path)
    large = create_model("vim", image_size=24, **GEOMETRY)
    load_other_resolution(large, path)
    assert torch.equal(large.head.weight, small.head.weight)
    assert torch.equal(large.pos_embed, resize_positions(small.pos_embed.detach(), 36))
    other = create_model("vim", image_size=24, **{**GEOMETRY, "depth": 2})
    with pytest.raises(VisqError, match=r"small.safetensors: is not the same network.*layers\.1"):
        load_other_resolution(other, path)
