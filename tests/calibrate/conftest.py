"""A small Vim and a small in-memory calibration set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from visq.models import create_model
from visq.models.vim import VisionMamba


class Images:
    """The part of a `Dataset` calibration uses, over a tensor."""

    def __init__(self, images: Tensor, name: str = "images") -> None:
        self.images, self.name = images, name

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        return f"{self.name}-{len(self)}"

    def shuffled(self, seed: int) -> Images:
        return Images(self.images[np.random.default_rng(seed).permutation(len(self))], self.name)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.images.split(batch_size):
            yield part, torch.zeros(len(part), dtype=torch.long)


@pytest.fixture
def model() -> VisionMamba:
    torch.manual_seed(0)
    model = create_model(
        "vim", image_size=12, patch_size=4, stride=4, channels=1, embed_dim=16, depth=2, d_state=4, num_classes=5
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm_f.weight")):
            parameter.data.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


@pytest.fixture
def images() -> Images:
    return Images(torch.randn(12, 1, 12, 12, generator=torch.Generator().manual_seed(1)))
