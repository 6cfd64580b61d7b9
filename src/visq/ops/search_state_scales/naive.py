"""Greedy search of the state's scales in plain torch, all candidates at once: the oracle of the fast kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import backends
from visq.ops._scan import Rounding, ScanInputs
from visq.ops.quantized_scan.naive import RoundState, quantize_factor


@backends.register("search_state_scales", "naive")
def forward(inputs: ScanInputs, rounding: Rounding, y_ref: Tensor, groups: Tensor, candidates: Tensor) -> Tensor:
    """Returns the step scales [L], NaN where no candidate has a finite score."""
    u, delta, A, B, C = inputs
    base, round_state = rounding.step, RoundState(rounding)
    assert base is not None
    length = u.shape[1]

    def advance(hq: Tensor, t: int) -> Tensor:
        abar, _ = quantize_factor(torch.exp(delta[:, t, :, None] * A), rounding.abar_table, rounding.abar_uniform)
        bbar, _ = quantize_factor(delta[:, t, :, None] * B[:, t, None, :], rounding.bbar_table, rounding.bbar_uniform)
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
        score = u.new_zeros(len(candidates), dtype=torch.float64)
        for t in range(begin, end):
            h = advance(hq, t)
            hq, _ = round_state(h, t, multiplier)
            if rounding.read_quantized or t > begin:
                score += cosine(hq if rounding.read_quantized else h, t)
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
