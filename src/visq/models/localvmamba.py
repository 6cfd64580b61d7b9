"""Defines LocalVMamba (arXiv 2403.09338): a VMamba `v0` whose blocks scan in directions of their own.

Written from the paper, the checkpoint's keys and the results of the public code (https://github.com/hunto/LocalMamba,
Apache-2.0). Maps are [B, H, W, C] between blocks; inside a block they are token sequences [B, L, C], row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from visq.models.efficientvmamba import PatchMerging
from visq.models.excitation import ChannelAttention
from visq.models.layers import CheckImages, DropPath, LayerNorm
from visq.models.levels import Level, LeveledClassifier, PatchStem, drop_rates
from visq.models.local_scan import LINE, LINES, Order, check_lines, directions_of
from visq.models.ssm import SS2D, SSM, reset_linears_and_scans


@dataclass(frozen=True)
class LocalVMambaConfig:
    """Holds the geometry of a LocalVMamba.

    Attributes:
        embed_dim: channels of the first level; each later level of `depths` has twice as many as the one before.
        d_state, expand: states N of the scan, d_inner / channels.
        reduction: d_inner / hidden channels of the gate behind each scan.
        directions: the scans of each block (`visq.models.local_scan`); no tensor tells them.
    """

    image_size: int = field(default=224, metadata={"minimum": 4})
    channels: int = 3
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 9, 2)
    d_state: int = 16
    expand: int = 2
    reduction: int = 8
    directions: tuple[str, ...] = field(
        default=("h h_flip w2 w2_flip",), metadata={"pattern": LINE, "description": LINES}
    )
    num_classes: int = 1000
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_lines(self.directions)


class LocalSS2D(SS2D):
    """Mixes positions as SS2D does, in the given directions; the channels of each scan's result pass a gate."""

    def __init__(self, dim: int, config: LocalVMambaConfig, directions: tuple[str, ...]) -> None:
        super().__init__(dim, config.d_state, config.expand)
        inner, first = config.expand * dim, self.directions[0]
        assert isinstance(first, SSM)
        rank = first.dt_proj.in_features
        self.directions = nn.ModuleList(SSM(inner, config.d_state, rank) for _ in directions)
        self.orders = nn.ModuleList(Order(direction) for direction in directions)
        self.attn = ChannelAttention(inner, max(1, inner // config.reduction))

    def cross_scan(self, u: Tensor, height: int, width: int) -> Tensor:
        """Returns the sum of the gated directions of u [B, L, C]; both go row by row."""
        total: Tensor | None = None
        for order, direction in zip(self.orders, self.directions, strict=True):
            assert isinstance(order, Order)
            y = self.attn(order.back(direction(order(u, height, width)), height, width))
            total = y if total is None else total + y
        assert total is not None
        return total


class Block(nn.Module):
    """Computes x + op(norm(x)). [B, H, W, dim] -> same."""

    #: linear -> the norm that it alone reads, so that a factor per channel can move between the two.
    norms_before: ClassVar[dict[str, str]] = {"op.in_proj": "norm"}

    def __init__(self, dim: int, config: LocalVMambaConfig, directions: tuple[str, ...], drop_path: float) -> None:
        super().__init__()
        self.norm, self.op = LayerNorm(dim), LocalSS2D(dim, config, directions)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        tokens = x.flatten(1, 2)
        return (tokens + self.drop_path(self.op(self.norm(tokens), height, width))).unflatten(1, (height, width))


def make_levels(config: LocalVMambaConfig) -> Iterator[Level]:
    """Yields the levels, from the finest resolution to the coarsest."""
    first = 0
    for i, rates in enumerate(drop_rates(config.depths, config.drop_path)):
        dim = config.embed_dim * 2**i
        blocks = nn.ModuleList(
            Block(dim, config, directions_of(config.directions, first + j), rate) for j, rate in enumerate(rates)
        )
        yield Level(blocks, None if i == len(config.depths) - 1 else PatchMerging(dim, 2 * dim))
        first += len(rates)


class LocalVMamba(LeveledClassifier):
    """Classifies images: [B, channels, H, W] -> logits [B, num_classes]."""

    def __init__(self, config: LocalVMambaConfig) -> None:
        check, stem = CheckImages(config.channels, None, "LocalVMamba"), PatchStem(config.channels, config.embed_dim)
        features = config.embed_dim * 2 ** (len(config.depths) - 1)
        super().__init__(check, stem, make_levels(config), features, config.num_classes)
        self.config = config
        reset_linears_and_scans(self)
