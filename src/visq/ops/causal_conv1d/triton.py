"""Causal depthwise convolution in Triton: float32 inside, float32, float16 or bfloat16 outside."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import _triton

#: Tokens and channels of a program.
ROWS, BLOCK = 16, 64


@_triton.register_triton("causal_conv1d")
def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns y [B, L, d_inner], in the type of x; arguments as in `visq.ops.causal_conv1d`."""
    return _convolve(x, weight, bias, turned=False)


@_triton.register_triton("causal_conv1d_backward")
def backward(x: Tensor, weight: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight and bias. Images are summed last, in their order."""
    batch, length, channels = x.shape
    taps = weight.shape[1]
    sums = torch.zeros(batch, taps + 1, channels, dtype=torch.float32, device=x.device)
    if x.numel():
        from visq.ops.causal_conv1d import triton_kernels

        x, grad_y = (_triton.contiguous_channels(a) for a in (x, grad_y))
        triton_kernels.backward[batch, -(-channels // BLOCK)](
            x, grad_y, sums, *x.stride()[:2], *grad_y.stride()[:2], channels,
            L=length, TAPS=taps, ROWS=ROWS, BLOCK=BLOCK, enable_fp_fusion=True,
        )  # fmt: skip
    total = sums.sum(0).to(weight.dtype)
    return _convolve(grad_y, weight, None, turned=True), total[:taps].t().contiguous(), total[taps].clone()


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
    batch, length, channels = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    from visq.ops.causal_conv1d import triton_kernels

    x, weight = _triton.contiguous_channels(x), weight.contiguous()
    triton_kernels.forward[batch, -(-length // ROWS), -(-channels // BLOCK)](
        x, weight, weight if bias is None else bias.contiguous(), y, *x.stride()[:2], channels,
        L=length, TAPS=weight.shape[1], HAS_BIAS=bias is not None, TURNED=turned, ROWS=ROWS, BLOCK=BLOCK,
        enable_fp_fusion=True,
    )  # fmt: skip
    return y
