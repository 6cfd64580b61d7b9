"""The hidden state of every step in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.native.extension import _C
from visq.ops import _native


@_native.register_cpp("scan_states")
def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Returns h [B, L, d_inner, N]; arguments as in `visq.ops.scan_states`."""
    (u_rows, u), (delta_rows, delta), (B_rows, B) = (_native.native_rows(x) for x in (u, delta, B))
    A = A.contiguous()
    h = torch.empty(*u.shape, A.shape[1], dtype=torch.float32)
    sizes = (*u.shape, A.shape[1])
    _C.scan_states(sizes, u_rows, delta_rows, A.data_ptr(), B_rows, h.data_ptr(), _native.threads())
    return h
