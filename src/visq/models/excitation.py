"""Defines gates of channels: what a map is like on average says how much of each channel passes."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from visq.models.layers import GELU, GateChannels, LayerNorm, Linear, ReLU, Sigmoid, TokenMean


class SqueezeExcite(nn.Module):
    """Computes x * sigmoid(conv_expand(ReLU(conv_reduce(mean of x)))). [B, L, dim] -> same.

    The two convolutions of the public code see one position, which is a matrix product.
    """

    def __init__(self, dim: int, reduced: int) -> None:
        super().__init__()
        self.pool, self.conv_reduce, self.act = TokenMean(keep=True), Linear(dim, reduced), ReLU()
        self.conv_expand, self.sigmoid, self.gate = Linear(reduced, dim), Sigmoid(), GateChannels()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv_expand(self.act(self.conv_reduce(self.pool(x))))
        return self.gate(x, self.sigmoid(gate))


class ChannelAttention(nn.Module):
    """Computes x * sigmoid(channel_select(GELU(global_reduce(mean of norm(x))))). [B, L, dim] -> same."""

    norms_before: ClassVar[dict[str, str]] = {}

    def __init__(self, dim: int, reduced: int) -> None:
        super().__init__()
        self.norm, self.pool, self.global_reduce = LayerNorm(dim), TokenMean(keep=True), Linear(dim, reduced)
        self.act, self.channel_select = GELU(), Linear(reduced, dim)
        self.sigmoid, self.gate = Sigmoid(), GateChannels()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.channel_select(self.act(self.global_reduce(self.pool(self.norm(x)))))
        return self.gate(x, self.sigmoid(gate))
