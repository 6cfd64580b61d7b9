"""Similarity sums in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import _triton

#: Columns that are added up at once, and candidates of a program.
COLUMNS, BLOCK = 32, 32


@_triton.register_triton("similarity_sums")
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
    (rows, columns), (groups, count) = x.shape, candidates.shape
    by_token = axis == "token"
    shape = (rows, count) if by_token else (rows, groups, count)
    first = torch.empty(shape, dtype=torch.float32, device=x.device)
    second = torch.empty(shape if metric == "cosine" else (0,), dtype=torch.float32, device=x.device)
    if first.numel():
        from visq.ops.similarity_sums import triton_kernels

        x, reference = x.contiguous(), reference.contiguous()
        triton_kernels.forward[rows, 1 if by_token else groups, -(-count // BLOCK)](
            x, reference, x if weight is None else weight.contiguous(), labels.to(torch.int32).contiguous(),
            candidates.contiguous(), first, second, qmin, qmax, G=groups, K=count, C=columns, BY_TOKEN=by_token,
            METRIC=metric, HAS_WEIGHT=weight is not None, COLUMNS=COLUMNS, BLOCK=BLOCK, enable_fp_fusion=False,
        )  # fmt: skip
    return first, second
