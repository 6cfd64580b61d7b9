"""Causal depthwise convolution as shifted sums: the oracle of the fast kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import backends


@backends.register("causal_conv1d", "naive")
def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns y [B, L, d_inner]; arguments as in `visq.ops.causal_conv1d`."""
    length, taps = x.shape[1], weight.shape[1]
    padded = torch.nn.functional.pad(x, (0, 0, taps - 1, 0))
    y = torch.zeros_like(x) if bias is None else bias.expand_as(x)
    for k in range(taps):
        y = y + weight[:, k] * padded[:, k : k + length]
    return y.clone() if taps == 0 else y


@backends.register("causal_conv1d_backward", "naive")
def backward(x: Tensor, weight: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight and bias."""
    length, taps = x.shape[1], weight.shape[1]
    padded = torch.nn.functional.pad(x, (0, 0, taps - 1, 0))
    grad_padded, grad_weight = torch.zeros_like(padded), torch.zeros_like(weight)
    for k in range(taps):
        grad_padded[:, k : k + length] += weight[:, k] * grad_y
        grad_weight[:, k] = (grad_y * padded[:, k : k + length]).sum((0, 1))
    return grad_padded[:, taps - 1 :].clone(), grad_weight, grad_y.sum((0, 1))
