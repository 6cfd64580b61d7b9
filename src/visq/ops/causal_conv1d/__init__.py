"""Causal depthwise convolution over the tokens, as Mamba blocks use it before the scan (arXiv 2312.00752, figure 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visq.ops import backends
from visq.ops._checks import float_under_autocast, require_dims, require_same_device, require_shape
from visq.ops.causal_conv1d import cpp, naive, triton  # noqa: F401  (they register themselves)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolves every channel over its own past, padding with zeros on the left.

        y[b, t, d] = bias[d] + sum_k weight[d, k] x[b, t - K + 1 + k, d]

    Differentiable in all arguments. The activation (SiLU) is not included.

    Arguments:
        x: float32 [B, L, d_inner]; may be a row-strided slice, such as half of in_proj's output.
        weight: float32 [d_inner, K]; the last tap meets the current token.
        bias: float32 [d_inner], or None.

    Returns:
        y, float32 [B, L, d_inner]. Bit-identical for any number of threads.

    Raises:
        VisqError: on a wrong shape or dtype. Under autocast the arguments are cast to float32 instead.
    """
    x, weight = float_under_autocast(x, weight)
    if bias is not None:
        (bias,) = float_under_autocast(bias)
    return _forward(x, weight, bias)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    require_dims("causal_conv1d", "x", x, "[B, L, d_inner]")
    require_dims("causal_conv1d", "weight", weight, "[d_inner, K]")
    d_inner = x.shape[2]
    require_shape("causal_conv1d", "weight", weight, (d_inner, weight.shape[1]), "[d_inner, K]")
    if bias is not None:
        require_shape("causal_conv1d", "bias", bias, (d_inner,), "[d_inner]")
    require_same_device("causal_conv1d", x=x, weight=weight, bias=bias)


@torch.library.custom_op("visq::causal_conv1d", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check(x, weight, bias)
    return backends.call("causal_conv1d", x.device.type, x, weight, bias)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check(x, weight, bias)
    return x.new_empty(x.shape)


@torch.library.custom_op("visq::causal_conv1d_backward", mutates_args=())
def _backward(x: Tensor, weight: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return backends.call("causal_conv1d_backward", x.device.type, x, weight, grad_y)


@_backward.register_fake
def _(x: Tensor, weight: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _backward(x, weight, grad_y)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None


_forward.register_autograd(_differentiate, setup_context=_save)
