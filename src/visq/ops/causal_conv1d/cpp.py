"""Causal depthwise convolution in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.native.extension import _C
from visq.ops import _native


@_native.register_cpp("causal_conv1d")
def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns y [B, L, d_inner]; arguments as in `visq.ops.causal_conv1d`."""
    rows, x = _native.native_rows(x)
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(x.shape, dtype=torch.float32)
    _C.conv_forward(
        (*x.shape, weight.shape[1]),
        rows,
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        _native.threads(),
    )
    return y


@_native.register_cpp("causal_conv1d_backward")
def backward(x: Tensor, weight: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight and bias."""
    rows, x = _native.native_rows(x)
    grad_rows, grad_y = _native.native_rows(grad_y)
    weight = weight.contiguous()
    grad_x, grad_weight = torch.empty(x.shape, dtype=torch.float32), torch.empty(weight.shape, dtype=torch.float32)
    grad_bias = torch.empty(weight.shape[:1], dtype=torch.float32)
    _C.conv_backward(
        (*x.shape, weight.shape[1]),
        rows,
        weight.data_ptr(),
        grad_rows,
        grad_x.data_ptr(),
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
        _native.threads(),
    )
    return grad_x, grad_weight, grad_bias
