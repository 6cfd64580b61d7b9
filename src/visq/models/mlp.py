"""Defines the MLP of a block."""

from __future__ import annotations

from torch import Tensor, nn

from visq.models.layers import GELU, Linear


class Mlp(nn.Module):
    """Computes fc2(GELU(fc1(x)))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = Linear(dim, hidden), GELU(), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))
