"""Builds a Vim small enough for every test: 3x3 patches of 4 pixels, two blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from visq.models import VisionMamba, create_model, save_checkpoint
from visq.models.checkpoint import official_parameters

SMALL = {"image_size": 12, "patch_size": 4, "stride": 4, "embed_dim": 16, "depth": 2, "d_state": 3, "num_classes": 5}


def randomized(model: VisionMamba, seed: int = 0) -> VisionMamba:
    """Moves every parameter off its initial value, so that no term of the forward pass hides; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture
def small() -> VisionMamba:
    return randomized(create_model("vim", **SMALL))


@pytest.fixture
def small_file(small: VisionMamba, tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save_checkpoint(small, path)
    return path


@pytest.fixture
def small_tensors(small: VisionMamba) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in official_parameters(small).items()}


@pytest.fixture(scope="session")
def tiny_tensors() -> dict[str, Tensor]:
    """Returns random weights of vim_tiny. Tests copy the dict before they change it."""
    torch.manual_seed(0)
    return official_parameters(create_model("vim_tiny"))
