"""Greedy search of the state's scales in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.native.extension import _C
from visq.ops import _native
from visq.ops._scan import NativeScan, Rounding, ScanInputs


@_native.register_cpp("search_state_scales")
def forward(inputs: ScanInputs, rounding: Rounding, y_ref: Tensor, groups: Tensor, candidates: Tensor) -> Tensor:
    """Returns the step scales [L], NaN where no candidate has a finite score."""
    scan = NativeScan(inputs, rounding)
    groups, candidates = groups.to(torch.int32).contiguous(), candidates.contiguous()
    steps = torch.empty(inputs.u.shape[1], dtype=torch.float32)
    _C.search_state_scales(
        *scan.arguments,
        scan.rows(y_ref),
        groups.data_ptr(),
        candidates.data_ptr(),
        candidates.shape[0],
        steps.data_ptr(),
        _native.threads(),
    )
    return steps
