"""Greedy search of the state's scales in C++ (csrc/state_search.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visq.native.extension import _C
from visq.ops import _native
from visq.ops.quantized_scan.cpp import NativeQuant


@_native.register_cpp("search_state_scales")
def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    y_ref: Tensor,
    groups: Tensor,
    base: Tensor,
    channel: Tensor,
    state: Tensor,
    candidates: Tensor,
    state_range: Sequence[int],
    read_quantized: bool,
    abar_table: Tensor | None,
    abar_uniform: Sequence[float],
    bbar_table: Tensor | None,
    bbar_uniform: Sequence[float],
) -> Tensor:
    """Step scales [L], NaN where no candidate has a finite score; arguments as in `visq.ops.search_state_scales`."""
    quant = NativeQuant(
        base, channel, state, state_range, read_quantized, abar_table, abar_uniform, bbar_table, bbar_uniform
    )
    (u_rows, u), (delta_rows, delta) = _native.native_rows(u), _native.native_rows(delta)
    (B_rows, B), (C_rows, C) = _native.native_rows(B), _native.native_rows(C)
    y_rows, y_ref = _native.native_rows(y_ref)
    A, candidates, groups = A.contiguous(), candidates.contiguous(), groups.to(torch.int32).contiguous()
    steps = torch.empty(u.shape[1], dtype=torch.float32)
    _C.search_state_scales(
        (*u.shape, A.shape[1]),
        u_rows,
        delta_rows,
        A.data_ptr(),
        B_rows,
        C_rows,
        quant.argument,
        y_rows,
        groups.data_ptr(),
        candidates.data_ptr(),
        candidates.shape[0],
        steps.data_ptr(),
        _native.threads(),
    )
    return steps
