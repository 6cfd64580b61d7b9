"""Defines LocalVMamba (arXiv 2403.09338): a VMamba `v0` whose blocks scan in directions of their own.

Written from the paper, the checkpoint's keys and the results of the public code (https://github.com/hunto/LocalMamba,
Apache-2.0). Maps are [B, H, W, C] between blocks; inside a block they are token sequences [B, L, C], row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from visq.models.efficientvmamba import PatchMerging
from visq.models.excitation import ChannelAttention
from visq.models.layers import CheckImages, Conv2d, DropPath, LayerNorm, Linear, TokenMean
from visq.models.local_scan import LINE, LINES, Order, check_lines, directions_of
from visq.models.ssm import SS2D, SSM, reset_linears_and_scans
from visq.models.stage import Stage, StagedNetwork


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


class Level(nn.Module):
    """Holds the blocks of one resolution and the downsampling to the next."""

    blocks: nn.ModuleList
    downsample: nn.Module | None

    def __init__(self, config: LocalVMambaConfig, level: int, first: int, rates: list[float]) -> None:
        super().__init__()
        dim = config.embed_dim * 2**level
        self.blocks = nn.ModuleList(
            Block(dim, config, directions_of(config.directions, first + i), rate) for i, rate in enumerate(rates)
        )
        self.downsample = None if level == len(config.depths) - 1 else PatchMerging(dim, 2 * dim)


class Stem(nn.Module):
    """Turns images [B, channels, H, W] into maps [B, H/4, W/4, dim]."""

    def __init__(self, config: LocalVMambaConfig) -> None:
        super().__init__()
        self.conv, self.norm = Conv2d(config.channels, config.embed_dim, 4, 4), LayerNorm(config.embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images.permute(0, 2, 3, 1)))


class LocalVMamba(StagedNetwork):
    """Classifies images: [B, channels, H, W] -> logits [B, num_classes].

    Nothing in it belongs to a position, so that it takes any size. `image_size` is the size it was trained for, and the
    only one after a calibration with scales per token or step.
    """

    def __init__(self, config: LocalVMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.check_images = CheckImages(config.channels, None, "LocalVMamba")
        self.patch_embed = Stem(config)
        total = sum(config.depths)
        rates = [config.drop_path * i / max(total - 1, 1) for i in range(total)]
        self.layers = nn.ModuleList()
        for level, depth in enumerate(config.depths):
            first = sum(config.depths[:level])
            self.layers.append(Level(config, level, first, rates[first : first + depth]))
        features = config.embed_dim * 2 ** (len(config.depths) - 1)
        self.norm, self.pool, self.head = LayerNorm(features), TokenMean(), Linear(features, config.num_classes)
        reset_linears_and_scans(self)

    def stages(self) -> list[Stage]:
        stages = [Stage("embed", self.embed, ("patch_embed",))]
        for i, level in enumerate(self.layers):
            assert isinstance(level, Level)
            steps: dict[str, nn.Module] = {f"layers.{i}.blocks.{j}": block for j, block in enumerate(level.blocks)}
            if level.downsample is not None:
                steps[f"layers.{i}.downsample"] = level.downsample
            stages += [Stage(name, lambda x, step=step: (step(x),), (name,)) for name, step in steps.items()]
        return [*stages, Stage("classify", self.classify, ("norm", "head"))]

    def embed(self, images: Tensor) -> tuple[Tensor]:
        return (self.patch_embed(self.check_images(images)),)

    def classify(self, x: Tensor) -> tuple[Tensor]:
        """Returns the logits of the mean of all normalized positions."""
        return (self.head(self.pool(self.norm(x.flatten(1, 2)))),)
