"""Defines the heads that turn the feature maps of a backbone into a class for each position.

Maps are [B, H, W, C]. Both heads return logits [B, H, W, classes] of the largest map; whoever needs a class for
each pixel enlarges them (`visq.integer.bilinear`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from visq.models.layers import GELU, Conv2d, LayerNorm, Linear
from visq.quant.site import Site


class Resize(nn.Module):
    """Resamples a map bilinearly to the height and width of another one, with a site `in`.

    [B, h, w, C], [B, H, W, ...] -> [B, H, W, C], as `F.interpolate` without aligned corners.
    """

    def __init__(self) -> None:
        super().__init__()
        self.site_in = Site()

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        maps = self.site_in(x.flatten(1, 2)).unflatten(1, x.shape[1:3]).permute(0, 3, 1, 2)
        larger = F.interpolate(maps, tuple(like.shape[1:3]), mode="bilinear", align_corners=False)
        return larger.permute(0, 2, 3, 1)


class AveragePool(nn.Module):
    """Averages the parts of a map, as `F.adaptive_avg_pool2d`. [B, H, W, C] -> [B, *size, C]

    Arguments:
        size: number of parts along the height and along the width.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.size).permute(0, 2, 3, 1)


class LightHead(nn.Module):
    """Adds a linear projection of every map, enlarged to the first one's size, and convolves the sum once.

    Arguments:
        dims: channels of the maps, the largest map first.
        width: channels of the sum.
        one_size: whether all maps have one size, so that none is enlarged.
    """

    def __init__(self, dims: Sequence[int], width: int, classes: int, one_size: bool = False) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(Linear(dim, width) for dim in dims)
        self.resize = nn.ModuleList(() if one_size else (Resize() for _ in dims[1:]))
        self.norm, self.act = LayerNorm(width), GELU()
        self.fuse, self.norm2, self.act2 = Conv2d(width, width, 3, padding=1), LayerNorm(width), GELU()
        self.classify = Linear(width, classes)

    def forward(self, *maps: Tensor) -> Tensor:
        first, *others = (each_position(lateral, x) for lateral, x in zip(self.laterals, maps, strict=True))
        total = first
        for i, x in enumerate(others):
            total = total + (self.resize[i](x, first) if self.resize else x)
        x = self.act(self.norm(total))
        return each_position(self.classify, self.act2(self.norm2(self.fuse(x))))


def each_position(linear: nn.Module, x: Tensor) -> Tensor:
    """Applies a linear to each position of a map; its sites see tokens [B, H W, C]."""
    return linear(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
