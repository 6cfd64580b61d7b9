"""The selective scan in Triton: float32 inside, float32, float16 or bfloat16 outside."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import _triton
from visq.ops._scan import Grads, ScanInputs
from visq.ops._triton import AHEAD, BLOCK


@_triton.register_triton("selective_scan")
def forward(inputs: ScanInputs) -> Tensor:
    """Returns y [B, L, d_inner], in the type of u."""
    y = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=inputs.u.device)
    _run_forward(inputs, y, save=False)
    return y


@_triton.register_triton("selective_scan_backward")
def backward(inputs: ScanInputs, grad_y: Tensor) -> Grads:
    """Returns the gradients of u, delta, A, B, C. States are kept for every AHEADth step and computed again between."""
    u, delta, A, B, C = inputs = _triton.adjacent(inputs)
    batch, length, channels = u.shape
    states, blocks = A.shape[1], -(-channels // BLOCK)
    saved = u.new_empty((batch, -(-length // AHEAD), channels, states), dtype=torch.float32)
    grad_A = u.new_zeros((batch, channels, states), dtype=torch.float32)
    grad_B, grad_C = (u.new_empty((blocks, batch, length, states), dtype=torch.float32) for _ in range(2))
    grad_u, grad_delta = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (u, delta))
    if u.numel():
        from visq.ops.selective_scan import triton_kernels

        _run_forward(inputs, saved, save=True)
        grad_y = _triton.contiguous_channels(grad_y)
        triton_kernels.backward[batch, blocks](
            *inputs, grad_y, saved, grad_u, grad_delta, grad_A, grad_B, grad_C,
            *(s for x in (u, delta, B, C, grad_y) for s in x.stride()[:2]), channels,
            L=length, N=states, WIDTH=_triton.power_of_two(states), BLOCK=BLOCK, AHEAD=AHEAD, num_warps=1,
            enable_fp_fusion=True,
        )  # fmt: skip
    return grad_u, grad_delta, grad_A.sum(0).to(A.dtype), grad_B.sum(0).to(B.dtype), grad_C.sum(0).to(C.dtype)


def _run_forward(inputs: ScanInputs, out: Tensor, save: bool) -> None:
    """Writes y, or the states that the backward pass starts from."""
    u, delta, A, B, C = inputs = _triton.adjacent(inputs)
    batch, length, channels = u.shape
    if not u.numel():
        return
    from visq.ops.selective_scan import triton_kernels

    triton_kernels.forward[batch, -(-channels // BLOCK)](
        *inputs, out, out, *(s for x in (u, delta, B, C) for s in x.stride()[:2]), channels,
        L=length, N=A.shape[1], WIDTH=_triton.power_of_two(A.shape[1]), BLOCK=BLOCK, AHEAD=AHEAD, SAVE=save,
        num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
