"""The hidden state of every step in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import _triton
from visq.ops._triton import AHEAD, BLOCK


@_triton.register_triton("scan_states")
def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Returns h [B, L, d_inner, N]; arguments as in `visq.ops.scan_states`."""
    batch, length, channels = u.shape
    states = A.shape[1]
    h = torch.empty(batch, length, channels, states, dtype=torch.float32, device=u.device)
    if not h.numel():
        return h
    from visq.ops.scan_states import triton_kernels

    u, delta, B = (_triton.contiguous_channels(x) for x in (u, delta, B))
    triton_kernels.forward[batch, -(-channels // BLOCK)](
        u, delta, A.contiguous(), B, h, *(s for x in (u, delta, B) for s in x.stride()[:2]), channels,
        L=length, N=states, WIDTH=_triton.power_of_two(states), BLOCK=BLOCK, AHEAD=AHEAD, num_warps=1,
        enable_fp_fusion=True,
    )  # fmt: skip
    return h
