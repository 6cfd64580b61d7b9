"""Greedy search of the state's scales in plain torch, all candidates at once: the oracle of the fast kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visq.ops import backends
from visq.ops.quantized_scan.naive import StateRounding, quantize_factor


@backends.register("search_state_scales", "naive")
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
    rounding = StateRounding(base, channel, state, state_range)
    length = u.shape[1]

    def advance(hq: Tensor, t: int) -> Tensor:
        abar, _ = quantize_factor(torch.exp(delta[:, t, :, None] * A), abar_table, abar_uniform)
        bbar, _ = quantize_factor(delta[:, t, :, None] * B[:, t, None, :], bbar_table, bbar_uniform)
        return abar * hq + bbar * u[:, t, :, None]

    def cosine(h: Tensor, t: int) -> Tensor:
        y, reference = (h * C[:, t, None, :]).sum(-1).double(), y_ref[:, t].double()
        norm = (y.square().sum(-1) * reference.square().sum(-1)).sqrt()
        dot = (y * reference).sum(-1)
        return torch.where(norm == 0, torch.zeros_like(dot), dot / norm).sum(-1)

    steps = torch.empty_like(base)
    history = u.new_zeros(u.shape[0], *A.shape)
    boundaries = (torch.nonzero(groups[1:] != groups[:-1]).flatten() + 1).tolist()
    for begin, end in zip([0, *boundaries], [*boundaries, length], strict=True):
        multiplier = candidates[:, None, None, None]
        hq = history.expand(len(candidates), *history.shape)
        score = torch.zeros(len(candidates), dtype=torch.float64)
        for t in range(begin, end):
            h = advance(hq, t)
            hq, _ = rounding(h, t, multiplier)
            if read_quantized or t > begin:
                score += cosine(hq if read_quantized else h, t)
        if end < length:
            score += cosine(advance(hq, end), end)
        best = _best(score, candidates)
        if best is None:
            steps[begin:end] = float("nan")
            best = 0
        else:
            steps[begin:end] = base[begin:end] * candidates[best]
        history = hq[best]
    return steps


def _best(score: Tensor, candidates: Tensor) -> int | None:
    finite = [k for k in range(len(score)) if not score[k].isnan()]
    if not finite:
        return None
    return max(finite, key=lambda k: (float(score[k]), -abs(float(candidates[k]) - 1.0), -k))
