"""Greedy search of the state's scales in Triton: a kernel runs a group of steps, PyTorch chooses the candidate."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import _triton
from visq.ops._scan import Rounding, ScanInputs
from visq.ops._triton import BLOCK
from visq.ops.quantized_scan.triton import Roundings


@_triton.register_triton("search_state_scales")
def forward(inputs: ScanInputs, rounding: Rounding, y_ref: Tensor, groups: Tensor, candidates: Tensor) -> Tensor:
    """Returns the step scales [L], NaN where no candidate has a finite score. Reads nothing back between groups."""
    u, delta, A, B, C = inputs = _triton.adjacent(inputs)
    (batch, length, channels), states, blocks = u.shape, A.shape[1], -(-u.shape[2] // BLOCK)
    base, count, roundings = rounding.step, len(candidates), Roundings(rounding, inputs)
    assert base is not None
    steps = torch.empty(length, dtype=torch.float32, device=u.device)
    if not u.numel():
        return steps
    from visq.ops.search_state_scales import triton_kernels

    y_ref, candidates = _triton.contiguous_channels(y_ref), candidates.contiguous()
    order = (candidates - 1).abs().argsort(stable=True)  # of equal scores, the candidate nearest to 1 wins
    energy = y_ref.double().square().sum(-1)
    history = u.new_zeros(batch, channels, states)
    ends = [*(torch.nonzero(groups[1:] != groups[:-1]).flatten() + 1).tolist(), length]
    for begin, end in zip([0, *ends], ends, strict=False):
        size = end - begin
        after = u.new_empty(count, batch, channels, states)
        sums = u.new_empty(2, count, batch, size + 1, blocks, dtype=torch.float64)
        triton_kernels.run_group[count, batch, blocks](
            *inputs, *roundings.tensors, y_ref, candidates, history, after, sums,
            *(s for x in (u, delta, B, C, y_ref) for s in x.stride()[:2]), channels, length, begin, *roundings.codes,
            **roundings.options, STEPS=size, N=states, WIDTH=_triton.power_of_two(states), BLOCK=BLOCK, num_warps=1,
            enable_fp_fusion=False,
        )  # fmt: skip
        scored = slice(0 if rounding.read_quantized else 1, size + (end < length))
        dot, square = sums.sum(-1)[..., scored]
        norm = (square * energy[:, begin : begin + size + 1][:, scored]).sqrt()
        score = torch.where(norm == 0, 0.0, dot / norm).sum((1, 2))[order]
        best = order[torch.where(score.isnan(), -torch.inf, score).argmax()]
        found = base[begin:end] * candidates[best]
        steps[begin:end] = torch.where(score.isnan().all(), torch.nan, found)
        history = after[torch.where(score.isnan().all(), 0, best)]
    return steps
