"""Defines VMamba (arXiv 2401.10166) as in https://github.com/MzeroMiko/VMamba, variants `v0` and `v05_noz`.

Maps are [B, H, W, C] between blocks; inside a block they are token sequences [B, L, C], row by row. SS2D scans them in
four orders: rows, columns, and both reversed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from visq.errors import VisqError
from visq.models.layers import GELU, CheckImages, Conv2d, DropPath, LayerNorm, Linear
from visq.models.levels import Level, LeveledClassifier, drop_rates
from visq.models.mlp import Mlp
from visq.models.ssm import SS2D, reset_linears_and_scans


@dataclass(frozen=True)
class VMambaConfig:
    """Holds the geometry of a VMamba.

    Attributes:
        embed_dim: channels of the first level; each later level of `depths` has twice as many as the one before.
        d_state, expand, mlp_ratio: states N of the scan, d_inner / channels, hidden channels of the MLP / channels.
        forward_type: `v0` gates with SiLU(z), has no MLP (`mlp_ratio` 0) and merges patches as Swin does. `v05_noz` has
            no gate; its stem and downsampling are overlapping convolutions.
    """

    image_size: int = 224
    channels: int = 3
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 8, 2)
    d_state: int = 1
    expand: int = 1
    mlp_ratio: int = field(default=4, metadata={"minimum": 0})
    forward_type: str = field(default="v05_noz", metadata={"choices": ("v0", "v05_noz")})
    num_classes: int = 1000
    drop_path: float = 0.0

    @property
    def gated(self) -> bool:
        return self.forward_type == "v0"

    def __post_init__(self) -> None:
        # Merging patches drops the last one of an odd number; the convolutions of `v05_noz` round up.
        if self.gated and self.image_size % 2 ** (1 + len(self.depths)):
            step = 2 ** (1 + len(self.depths))
            below = self.image_size // step * step
            raise VisqError(
                f"image_size {self.image_size} does not halve {1 + len(self.depths)} times; take a multiple of {step}: "
                f"{f'{below} or ' if below else ''}{below + step}"
            )


def mixer(dim: int, config: VMambaConfig) -> SS2D:
    """Returns the SS2D of a geometry."""
    gated = config.gated
    return SS2D(dim, config.d_state, config.expand, gated=gated, conv_bias=gated)


class VSSBlock(nn.Module):
    """Computes x + op(norm(x)), then x + mlp(norm2(x)) where there is an MLP. [B, H, W, dim] -> same."""

    #: linear -> the norm that it alone reads, so that a factor per channel can move between the two.
    norms_before: ClassVar[dict[str, str]] = {"op.in_proj": "norm", "mlp.fc1": "norm2"}

    def __init__(self, dim: int, config: VMambaConfig, drop_path: float) -> None:
        super().__init__()
        self.norm, self.op = LayerNorm(dim), mixer(dim, config)
        self.norm2 = LayerNorm(dim) if config.mlp_ratio else None
        self.mlp = Mlp(dim, config.mlp_ratio * dim) if config.mlp_ratio else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        tokens = x.flatten(1, 2)
        tokens = tokens + self.drop_path(self.op(self.norm(tokens), height, width))
        if self.mlp is not None and self.norm2 is not None:
            tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens.unflatten(1, (height, width))


class PatchMerging(nn.Module):
    """Merges 2 x 2 neighbours as Swin does: concatenate, norm, linear. [B, H, W, C] -> [B, H/2, W/2, 2 C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = LayerNorm(4 * dim), Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1] // 2, x.shape[2] // 2
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged = self.reduction(self.norm(torch.cat(parts, dim=-1).flatten(1, 2)))
        return merged.unflatten(1, (height, width))


class ConvNorm(nn.Module):
    """Convolves, then normalizes over channels. [B, H, W, C] -> [B, H', W', C']."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int = 0) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding=padding)
        self.norm = LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Stem(nn.Module):
    """Turns images [B, channels, H, W] into maps [B, H/4, W/4, embed_dim]."""

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        if config.gated:
            self.steps = nn.Sequential(ConvNorm(config.channels, dim, 4, 4))
        else:
            first, second = ConvNorm(config.channels, dim // 2, 3, 2, 1), ConvNorm(dim // 2, dim, 3, 2, 1)
            self.steps = nn.Sequential(first, GELU(), second)

    def forward(self, images: Tensor) -> Tensor:
        return self.steps(images.permute(0, 2, 3, 1))


def make_levels(config: VMambaConfig) -> Iterator[Level]:
    """Yields the levels, from the finest resolution to the coarsest."""
    for i, rates in enumerate(drop_rates(config.depths, config.drop_path)):
        dim = config.embed_dim * 2**i
        blocks = nn.ModuleList(VSSBlock(dim, config, rate) for rate in rates)
        down = PatchMerging(dim) if config.gated else ConvNorm(dim, 2 * dim, 3, 2, 1)
        yield Level(blocks, None if i == len(config.depths) - 1 else down)


class VMamba(LeveledClassifier):
    """Classifies images: [B, channels, H, W] -> logits [B, num_classes]."""

    def __init__(self, config: VMambaConfig) -> None:
        # Merging patches drops the last one of an odd number.
        multiple = 2 ** (1 + len(config.depths)) if config.gated else 1
        check = CheckImages(config.channels, None, "VMamba", multiple)
        features = config.embed_dim * 2 ** (len(config.depths) - 1)
        super().__init__(check, Stem(config), make_levels(config), features, config.num_classes)
        self.config = config
        reset_linears_and_scans(self)
