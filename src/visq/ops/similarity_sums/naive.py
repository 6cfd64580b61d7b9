"""Similarity sums in plain torch, one candidate at a time: the oracle of the fast kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import backends


@backends.register("similarity_sums", "naive")
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
    groups, count = candidates.shape
    by_token = axis == "token"
    shape = (x.shape[0], count) if by_token else (x.shape[0], groups, count)
    first = x.new_zeros(shape)
    second = x.new_zeros(shape if metric == "cosine" else (0,))
    members = labels.long()
    for k in range(count):
        scale = candidates[members, k][:, None] if by_token else candidates[members, k]
        xq = torch.round(x * (1 / scale)).clamp(qmin, qmax) * scale
        if metric == "cosine":
            terms = [reference * xq, xq * xq]
        elif metric == "l1":
            terms = [(reference - xq).abs()]
        else:
            terms = [(reference - xq) ** 2 if weight is None else weight * (reference - xq) ** 2]
        for sums, term in zip((first, second), terms, strict=False):
            if by_token:
                sums[:, k] = term.sum(1)
            else:
                sums[:, :, k] = torch.zeros_like(sums[:, :, k]).index_add(1, members, term)
    return first, second
