"""Defines UperNet's head (arXiv 1807.10221) as mmsegmentation has it, with the names of its checkpoints.

The last map is pooled at several scales and joined; then every map takes what the smaller ones found, and all of them
are joined at the size of the largest. Maps are [B, H, W, C].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visq.models.batch_norm import BatchNorm, fold_into
from visq.models.dense_heads import AveragePool, Resize
from visq.models.layers import Conv2d, ReLU

#: Parts along a side of the last map at which it is averaged.
POOL_SCALES = (1, 2, 3, 6)


class ConvModule(nn.Module):
    """Computes ReLU(bn(conv(x))), with as many positions as x has. [B, H, W, C] -> [B, H, W, C']"""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, folded: bool) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=folded)
        self.bn = nn.Identity() if folded else BatchNorm(out_channels)
        self.activate = ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(x)))


class UperNetHead(nn.Module):
    """Joins maps from the smallest to the largest.

    Arguments:
        dims: channels of the maps, the largest map first.
        width: channels of everything inside.
        folded: whether the batch norms are in the convolutions already.
    """

    def __init__(self, dims: Sequence[int], width: int, classes: int, folded: bool) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(AveragePool((scale, scale)), ConvModule(dims[-1], width, 1, folded)) for scale in POOL_SCALES
        )
        self.bottleneck = ConvModule(dims[-1] + len(POOL_SCALES) * width, width, 3, folded)
        self.lateral_convs = nn.ModuleList(ConvModule(dim, width, 1, folded) for dim in dims[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(width, width, 3, folded) for _ in dims[:-1])
        self.fpn_bottleneck = ConvModule(len(dims) * width, width, 3, folded)
        self.conv_seg = Conv2d(width, classes, 1)
        self.psp_resize = nn.ModuleList(Resize() for _ in POOL_SCALES)
        self.down_resize = nn.ModuleList(Resize() for _ in dims[1:])
        self.fpn_resize = nn.ModuleList(Resize() for _ in dims[1:])

    def forward(self, *maps: Tensor) -> Tensor:
        last = maps[-1]
        pooled = [up(part(last), last) for part, up in zip(self.psp_modules, self.psp_resize, strict=True)]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        laterals.append(self.bottleneck(torch.cat([last, *pooled], dim=-1)))
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + self.down_resize[i - 1](laterals[i], laterals[i - 1])
        first, *others = [conv(x) for conv, x in zip(self.fpn_convs, laterals[:-1], strict=True)] + laterals[-1:]
        alike = [up(x, first) for up, x in zip(self.fpn_resize, others, strict=True)]
        return self.conv_seg(self.fpn_bottleneck(torch.cat([first, *alike], dim=-1)))


def fold_head(head: UperNetHead) -> None:
    """Folds every batch norm into the convolution in front of it, in place."""
    for module in head.modules():
        if isinstance(module, ConvModule) and isinstance(module.bn, BatchNorm):
            fold_into(module.conv, module.bn)
            module.bn = nn.Identity()
