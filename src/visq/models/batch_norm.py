"""Defines batch normalization over channels-last maps, and folds it into what stands before it.

A trained network normalizes with fixed statistics, which is one factor and one shift a channel. Folding moves both
into the convolution in front, so that no quantizer and no engine sees a norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visq.models.layers import Conv2d, Linear


class BatchNorm(nn.Module):
    """Normalizes each channel by the batch's statistics while training, by the stored ones otherwise.

    Takes [..., C] and returns the same shape. Names are those of `nn.BatchNorm2d` without `num_batches_tracked`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.float().flatten(0, -2)
        statistics = (self.running_mean, self.running_var)
        rows = F.batch_norm(rows, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)
        return rows.view(x.shape)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Returns the factor and the shift [C] of the stored statistics, in float64."""
        factor = self.weight.double() / (self.running_var.double() + self.eps).sqrt()
        return factor, self.bias.double() - self.running_mean.double() * factor


class Affine(nn.Module):
    """Computes x * weight + bias for each channel: a batch norm that has no convolution in front of it, folded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


@torch.no_grad()
def fold_into(conv: Conv2d | Linear, norm: BatchNorm) -> None:
    """Makes a convolution or linear compute norm(conv(x)): its weight takes the factor, its bias the shift."""
    factor, shift = norm.affine()
    bias = torch.zeros(len(factor)) if conv.bias is None else conv.bias
    conv.weight.copy_(conv.weight.double() * factor.view(-1, *[1] * (conv.weight.ndim - 1)))
    conv.bias = nn.Parameter((bias.double() * factor + shift).float())


@torch.no_grad()
def folded(norm: BatchNorm) -> Affine:
    """Returns a norm as a factor and a shift for each channel."""
    affine = Affine(len(norm.weight))
    factor, shift = norm.affine()
    affine.weight.copy_(factor)
    affine.bias.copy_(shift)
    return affine
