"""Greedy search of the hidden state's scales in time order (k-scaled, arXiv 2501.16738, with the history quantized)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.ops import backends
from visq.ops._checks import check_scan, require_dims, require_same_device, require_shape
from visq.ops._scan import INPUTS_SCHEMA, ROUNDING_SCHEMA, ScanInputs, unflatten
from visq.ops.quantized_scan.params import (
    StateRounding,
    Table,
    Uniform,
    absorb,
    check_rounding,
    check_rounding_values,
    rounding_of,
)
from visq.ops.search_state_scales import cpp, naive, triton  # noqa: F401  (they register themselves)

_OP = "search_state_scales"


def search_state_scales(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    y_ref: Tensor,
    *,
    groups: Tensor,
    base: Tensor,
    channel: Tensor,
    state: Tensor,
    candidates: Tensor,
    qmin: int,
    qmax: int,
    read_quantized: bool = True,
    abar: Uniform | Table | None = None,
    bbar: Uniform | Table | None = None,
) -> Tensor:
    """Chooses the per-step factor of the state's scale, one group of consecutive steps after the other.

    For each group and each candidate m, the recurrence runs from the already quantized history over the steps of the
    group with scale base[t] * m * channel[c] * state[n], and over one more step (when there is one) whose y reads the
    unrounded state. The score of m is the mean, over images and scored steps, of the cosine over channels between y_t
    and y_ref[:, t]. Scored are the steps whose y depends on m: with read_quantized all of the group and the one after,
    without it all but the group's first. The best m wins (ties: the one closest to 1, then the first; nothing to score:
    the one closest to 1), and all images advance with it. Deterministic for any number of threads.

    Arguments:
        u, delta, A, B, C: inputs of the scan, as in `selective_scan`. All images are searched together.
        y_ref: the target, the FP output of the scan without D-skip and gate, float32 [B, L, d_inner].
        groups: int32 or int64 [L], the group of each step: starts at 0, non-decreasing. All 0: one factor for the
            sequence; 0..L-1: one per step.
        base: float32 [L], the scale that candidate 1.0 stands for.
        channel, state: float32 [d_inner] and [N], the other two factors of the scale.
        candidates: float32 [K], multipliers of base, such as 0.01 ... 1.19 with 1.0 among them.
        qmin, qmax, read_quantized: as in `StateRounding`.
        abar, bbar: quantizers of the factors during the search, as in `quantized_scan`.

    Returns:
        step, float32 [L], to be used as `StateRounding.step`.

    Raises:
        VisqError: on wrong shapes or values, and when no candidate has a finite score at some step.
    """
    inputs = absorb(bbar, ScanInputs(u, delta, A, B, C))
    start = StateRounding(base, channel, state, qmin, qmax, read_quantized)
    rounding = rounding_of(start, abar, bbar, length=len(base))
    return _forward(*inputs, *rounding, y_ref, groups, candidates)


def _check_groups(groups: Tensor, length: int) -> None:
    if groups.dtype not in (torch.int32, torch.int64) or tuple(groups.shape) != (length,):
        kind = str(groups.dtype).removeprefix("torch.")
        raise VisqError(f"{_OP}: groups must be int32 [L] = [{length}], got {kind} {list(groups.shape)}")
    if length and (int(groups[0]) != 0 or bool((groups[1:] < groups[:-1]).any())):
        raise VisqError(f"{_OP}: groups must start at 0 and never decrease along the steps")


def _run(*args: Any) -> Tensor:
    inputs, rounding, (y_ref, groups, candidates) = unflatten(args)
    check_scan(_OP, *inputs)
    batch, length, d_inner = inputs.u.shape
    require_shape(_OP, "y_ref", y_ref, (batch, length, d_inner), "[B, L, d_inner]")
    require_dims(_OP, "candidates", candidates, "[K]")
    _check_groups(groups, length)
    check_rounding(_OP, inputs, rounding)
    check_rounding_values(_OP, rounding)
    if not candidates.numel() or not bool(((candidates > 0) & torch.isfinite(candidates)).all()):
        raise VisqError(f"{_OP}: candidates must be at least one multiplier, all positive and finite")
    require_same_device(_OP, u=inputs.u, y_ref=y_ref, groups=groups, base=rounding.step, channel=rounding.channel)
    steps = backends.call(_OP, inputs.device, inputs, rounding, y_ref, groups, candidates)
    failed = torch.nonzero(steps.isnan()).flatten()
    if len(failed):
        raise VisqError(f"{_OP}: no candidate gives a finite output at step {int(failed[0])}; check u, delta and y_ref")
    return steps


_forward = torch.library.custom_op(
    "visq::search_state_scales",
    _run,
    mutates_args=(),
    schema=f"({INPUTS_SCHEMA}, {ROUNDING_SCHEMA}, Tensor y_ref, Tensor groups, Tensor candidates) -> Tensor",
)


@_forward.register_fake
def _(*args: Any) -> Tensor:
    inputs, _, _ = unflatten(args)
    return inputs.u.new_empty(inputs.u.shape[1])
