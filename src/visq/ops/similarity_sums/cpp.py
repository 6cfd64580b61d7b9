"""Similarity sums in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.native.extension import _C
from visq.ops import _native

_METRICS = {"cosine": 0, "l1": 1, "l2": 2}


@_native.register_cpp("similarity_sums")
def forward(
    x: Tensor,
    reference: Tensor,
    labels: Tensor,
    candidates: Tensor,
    qmin: int,
    qmax: int,
    axis: str,
    metric: str,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the two sums of `visq.ops.similarity_sums`; the second is empty unless the metric is the cosine."""
    x, reference, candidates = x.contiguous(), reference.contiguous(), candidates.contiguous()
    labels = labels.to(torch.int32).contiguous()
    weight = None if weight is None else weight.contiguous()
    groups, count = candidates.shape
    by_token = axis == "token"
    shape = (x.shape[0], count) if by_token else (x.shape[0], groups, count)
    first = torch.empty(shape, dtype=torch.float32)
    second = torch.empty(shape if metric == "cosine" else (0,), dtype=torch.float32)
    _C.similarity_sums(
        (*x.shape, groups, count),
        x.data_ptr(),
        reference.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        labels.data_ptr(),
        candidates.data_ptr(),
        float(qmin),
        float(qmax),
        by_token,
        _METRICS[metric],
        first.data_ptr(),
        second.data_ptr(),
        _native.threads(),
    )
    return first, second
