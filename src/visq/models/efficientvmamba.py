"""Defines EfficientVMamba (arXiv 2403.09977): skip-sampled scans beside convolutions, then inverted residuals.

As in https://github.com/TerryPei/EfficientVMamba. Maps are [B, H, W, C] between blocks; inside a block they are token
sequences [B, L, C], row by row. Convolutions of one position are matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from visq.errors import VisqError
from visq.models.batch_norm import BatchNorm, fold_into
from visq.models.excitation import ChannelAttention, SqueezeExcite
from visq.models.layers import GELU, CheckImages, Conv2d, DropPath, LayerNorm, Linear, ReLU
from visq.models.levels import Level, LeveledClassifier, PatchStem, drop_rates
from visq.models.mlp import Mlp
from visq.models.skipping import ORDER, MergeSamples, SampleMap
from visq.models.ssm import SS2D, reset_linears_and_scans

#: Levels with scans; the others are made of inverted residuals.
SCAN_LEVELS = 2


@dataclass(frozen=True)
class EfficientVMambaConfig:
    """Holds the geometry of an EfficientVMamba.

    Attributes:
        dims, depths: channels and blocks of each level.
        d_state, expand: states N of a scan, channels of the scan / channels of the block.
        mlp_ratio: hidden channels of the MLP behind a scan / channels; 0 for none.
        hidden_ratio: channels inside an inverted residual / channels.
        reduction: channels in front of a gate / channels inside it.
        norm: `batch` as trained, `folded` after `fold_norms`.
    """

    image_size: int = field(default=224, metadata={"minimum": 4})
    channels: int = 3
    dims: tuple[int, ...] = (48, 96, 192, 384)
    depths: tuple[int, ...] = (2, 2, 4, 2)
    d_state: int = 16
    expand: int = 2
    mlp_ratio: int = field(default=0, metadata={"minimum": 0})
    hidden_ratio: int = 4
    reduction: int = 8
    num_classes: int = 1000
    drop_path: float = 0.0
    norm: str = field(default="batch", metadata={"choices": ("batch", "folded")})

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.depths):
            raise VisqError(f"dims and depths need one number a level, not {len(self.dims)} and {len(self.depths)}")


def batch_norm(channels: int, config: EfficientVMambaConfig) -> nn.Module:
    """Returns the norm behind a convolution, which is nothing once it is folded."""
    return nn.Identity() if config.norm == "folded" else BatchNorm(channels)


def over_map(conv: nn.Module, tokens: Tensor, height: int, width: int) -> Tensor:
    """Convolves tokens [B, H W, C] as a map."""
    return conv(tokens.unflatten(1, (height, width))).flatten(1, 2)


class AtrousSS2D(SS2D):
    """Mixes positions as SS2D does, but each direction scans a sample of its own: every second row and column.

    Two samples go row by row, two column by column; none is reversed.
    """

    def __init__(self, dim: int, d_state: int = 16, expand: int = 2) -> None:
        super().__init__(dim, d_state, expand)
        self.samples, self.merge = nn.ModuleList(SampleMap(*place) for place in ORDER), MergeSamples()

    def cross_scan(self, u: Tensor, height: int, width: int) -> Tensor:
        """Returns the four scans of u [B, L, C], each position from the scan of its sample; both go row by row."""
        maps = u.unflatten(1, (height, width))
        pairs = zip(self.samples, self.directions, strict=True)
        return self.merge(*[scan(sample(maps).flatten(1, 2)) for sample, scan in pairs], height, width)


class EVSSBlock(nn.Module):
    """Computes x + se(op(y)) + se(conv_branch(y)) of y = norm(x), then x + mlp(norm2(x)) where there is an MLP.

    [B, H, W, dim] -> same.
    """

    #: linear -> the norm that it alone reads, so that a factor per channel can move between the two.
    norms_before: ClassVar[dict[str, str]] = {"mlp.fc1": "norm2"}

    def __init__(self, dim: int, config: EfficientVMambaConfig, drop_path: float) -> None:
        super().__init__()
        self.norm, self.op = LayerNorm(dim), AtrousSS2D(dim, config.d_state, config.expand)
        local = Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.conv_branch = nn.Sequential(local, batch_norm(dim, config), GELU(), Linear(dim, dim))
        self.se = ChannelAttention(dim, max(1, dim // config.reduction))
        self.norm2 = LayerNorm(dim) if config.mlp_ratio else None
        self.mlp = Mlp(dim, config.mlp_ratio * dim) if config.mlp_ratio else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        tokens = x.flatten(1, 2)
        y = self.norm(tokens)
        local = over_map(self.conv_branch[0], y, height, width)
        for layer in list(self.conv_branch)[1:]:
            local = layer(local)
        tokens = tokens + self.drop_path(self.se(self.op(y, height, width)) + self.se(local))
        if self.mlp is not None and self.norm2 is not None:
            tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens.unflatten(1, (height, width))


class InvertedResidual(nn.Module):
    """Computes x + conv_pw2(se(conv_dw(conv_pw(x)))), with more channels inside. [B, H, W, dim] -> same."""

    def __init__(self, dim: int, config: EfficientVMambaConfig, drop_path: float) -> None:
        super().__init__()
        inner, folded = config.hidden_ratio * dim, config.norm == "folded"
        self.conv_pw = nn.Sequential(Linear(dim, inner, bias=folded), batch_norm(inner, config), ReLU())
        local = Conv2d(inner, inner, 3, padding=1, groups=inner, bias=folded)
        self.conv_dw = nn.Sequential(local, batch_norm(inner, config), ReLU())
        self.se = SqueezeExcite(inner, max(1, inner // config.reduction))
        self.conv_pw2 = nn.Sequential(Linear(inner, dim, bias=folded), batch_norm(dim, config))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        tokens = x.flatten(1, 2)
        y = over_map(self.conv_dw[0], self.conv_pw(tokens), height, width)
        for layer in list(self.conv_dw)[1:]:
            y = layer(y)
        return (tokens + self.drop_path(self.conv_pw2(self.se(y)))).unflatten(1, (height, width))


class PatchMerging(nn.Module):
    """Merges 2 x 2 neighbours as Swin does: concatenate, norm, linear. [B, H, W, dim] -> [B, H', W', out].

    H' = ceil(H / 2) and W' = ceil(W / 2): beyond an odd side lie zeros.
    """

    norms_before: ClassVar[dict[str, str]] = {"reduction": "norm"}

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.samples = nn.ModuleList(SampleMap(row, column) for column in (0, 1) for row in (0, 1))
        self.norm, self.reduction = LayerNorm(4 * dim), Linear(4 * dim, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        merged = torch.cat([sample(x) for sample in self.samples], dim=-1)
        tokens = self.reduction(self.norm(merged.flatten(1, 2)))
        return tokens.unflatten(1, merged.shape[1:3])


def make_levels(config: EfficientVMambaConfig) -> Iterator[Level]:
    """Yields the levels, from the finest resolution to the coarsest."""
    for i, (dim, rates) in enumerate(zip(config.dims, drop_rates(config.depths, config.drop_path), strict=True)):
        kind = EVSSBlock if i < SCAN_LEVELS else InvertedResidual
        blocks = nn.ModuleList(kind(dim, config, rate) for rate in rates)
        yield Level(blocks, None if i == len(config.dims) - 1 else PatchMerging(dim, config.dims[i + 1]))


class EfficientVMamba(LeveledClassifier):
    """Classifies images: [B, channels, H, W] -> logits [B, num_classes]."""

    def __init__(self, config: EfficientVMambaConfig) -> None:
        check, stem = CheckImages(config.channels, None, "EfficientVMamba"), PatchStem(config.channels, config.dims[0])
        super().__init__(check, stem, make_levels(config), config.dims[-1], config.num_classes)
        self.config = config
        reset_linears_and_scans(self)


def fold_norms(model: EfficientVMamba) -> EfficientVMamba:
    """Folds every batch norm into the convolution or linear in front of it.

    Works in place and returns the network, which computes what it did in evaluation mode.
    """
    if model.config.norm == "folded":
        return model
    for module in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        conv, norm = module[0], module[1]
        assert isinstance(conv, Conv2d | Linear) and isinstance(norm, BatchNorm)
        fold_into(conv, norm)
        module[1] = nn.Identity()
    model.config = replace(model.config, norm="folded")
    return model
