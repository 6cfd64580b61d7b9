"""Chooses the hidden state's scales: groups of time steps, and the scale of each group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from visq import ops, parallel
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.scales import usable
from visq.stages.factors import Factors, chunks

#: Low bits of |h| that a histogram ignores. 5 bits of the fraction stay: 1/32 to 1/64 of the value.
_SHIFT = 18
#: Steps whose states are searched together: they and their copies stay in the cache.
_STEPS = 8


class StepRange:
    """Streams r_t, the maximum or a percentile of |h_t| / (r_C r_D) over images, channels and states.

    Arguments:
        percentile: in percent, above 50; 100 is the maximum.
    """

    def __init__(self, percentile: float = 100.0) -> None:
        if not 50 < percentile <= 100:
            raise VisqError(f"percentile must be above 50 and at most 100, got {percentile}")
        self.percentile = percentile
        self.maximum: Tensor | None = None
        self.counts = torch.zeros((), dtype=torch.long)
        self.images = 0

    def observe(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, factors: Factors) -> None:
        spread = factors.channel[:, None] * factors.state
        for u_i, delta_i, B_i in chunks(u, delta, B, states=A.shape[1]):
            magnitude = ops.scan_states(u_i, delta_i, A, B_i).abs_().div_(spread)
            for largest, images in parallel.each((magnitude.amax((0, 2, 3)), len(magnitude))):
                self.images += images
                if self.maximum is not None and self.maximum.shape != largest.shape:
                    raise VisqError("a scale per step needs images of one size; use granularity tensor")
                self.maximum = largest if self.maximum is None else torch.maximum(self.maximum, largest)
            if self.percentile < 100:
                for counts in parallel.each(step_counts(magnitude)):
                    self.counts = self.counts + counts

    def result(self) -> Tensor:
        """r [L]."""
        assert self.maximum is not None
        if self.percentile == 100:
            return self.maximum
        inside = self.counts.cumsum(1) < self.percentile / 100 * self.counts.sum(1, keepdim=True) * (1 - 1e-12)
        upper_edge = ((inside.sum(1) + 1).int() << _SHIFT).view(torch.float32)
        return torch.minimum(upper_edge, self.maximum)


def step_counts(magnitude: Tensor) -> Tensor:
    """Counts values by exponent and leading bits of the fraction, step by step.

    magnitude [B, L, C, N] >= 0 -> [L, 2^13] int64.
    """
    length, bins = magnitude.shape[1], 1 << (31 - _SHIFT)
    first = (torch.arange(length, device=magnitude.device) * bins).int()
    index = (magnitude.view(torch.int32) >> _SHIFT) + first.view(-1, 1, 1)
    return torch.bincount(index.flatten(), minlength=length * bins).view(length, bins)


def step_scales(maximum: Tensor, factors: Factors, spec: Spec) -> tuple[Tensor, Tensor]:
    """Returns the full-range scale and the group of each step.

    Arguments:
        maximum: [L] range of |h_t| / (r_C r_D) over images, channels and states.
    Returns:
        base [L]: S[group] * r_L with the smallest S that clips nothing; groups [L] int32.
    """
    length, device = maximum.numel(), maximum.device
    kind = spec.granularity.kind
    smooth_maximum = maximum / factors.step
    if kind == "tensor":
        groups = torch.zeros(length, dtype=torch.int32, device=device)
    elif kind == "step":
        groups = torch.arange(length, dtype=torch.int32, device=device)
    elif kind == "step_groups":
        groups = contiguous_groups(smooth_maximum, spec.granularity.k)
    else:
        raise VisqError(f"the hidden state knows granularities tensor, step and step_groups, not {kind}")
    count = int(groups.max()) + 1
    largest = maximum.new_zeros(count).scatter_reduce_(0, groups.long(), smooth_maximum, "amax")
    largest = usable(largest.clamp_min(1e-6 * float(largest.max())))
    return usable(largest[groups.long()] / spec.qmax * factors.step), groups


def contiguous_groups(maximum: Tensor, k: int) -> Tensor:
    """Cuts the steps into k consecutive groups (QMamba's TGQ). maximum r [L] -> labels [L] int32, ascending.

    Minimizes sum_g |g| max_{t in g} r_t^2 by dynamic programming: with one scale a group, the squared rounding error is
    proportional to that sum.
    """
    length = maximum.numel()
    if k > length:
        raise VisqError(f"k={k} groups of steps are asked for, but the sequence has only {length} steps")
    square = maximum.double().square().cpu()  # a sequential search over few numbers
    cost = torch.full((length, length + 1), torch.inf, dtype=torch.double)
    for start in range(length):
        sizes = torch.arange(1, length - start + 1)
        cost[start, start + 1 :] = square[start:].cummax(0).values * sizes
    best = cost[0].clone()
    cuts = []
    for _ in range(1, k):
        total = best[:length, None] + cost
        best, cut = total.min(0)
        cuts.append(cut)
    labels = torch.zeros(length, dtype=torch.int32)
    end = length
    for group in range(k - 1, 0, -1):
        start = int(cuts[group - 1][end])
        labels[start:end] = group
        end = start
    return labels.to(maximum.device)


@dataclass(frozen=True)
class RecordedScan:
    """Holds the scans of a few images: inputs u, delta [B, L, C], A [C, N], B, C [B, L, N] and the FP32 output y
    [B, L, C]."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    y: Tensor

    def loss(self, **quantizers: Any) -> float:
        """Returns y's summed squared error when the scan rounds with the given `abar`, `bbar` and `state`."""
        y = ops.quantized_scan(self.u, self.delta, self.A, self.B, self.C, **quantizers)
        return float((y - self.y).square_().sum(dtype=torch.double))


#: (inputs, base [L], groups [L], factors, spec, scan arguments of abar and bbar) -> step [L].
Search = Callable[[RecordedScan, Tensor, Tensor, Factors, Spec, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class StateEstimator:
    """Says how the scale of each group is chosen.

    Arguments:
        search: chooses multiples of the range; None keeps the range.
        images: how many images the search sees, the first ones; drawn where the scope has `search_images`.
        percentile: the percentile of |h_t| that is the range, from which groups and multiples are made.
        read_quantized: whether y reads the rounded state, or the sum that is then rounded.
    """

    search: Search | None
    images: int
    percentile: float
    read_quantized: bool = True


def make_state_estimator(spec: Spec, name: str) -> StateEstimator:
    """Returns the estimator that a spec names for the site called `name`.

    Any estimator takes `read`: y reads the `rounded` state, which is all that hardware would have stored, or the `sum`.

    Raises:
        VisqError: an unknown estimator or parameter, a codebook.
    """
    known: dict[str, Callable[..., StateEstimator]] = {
        "minmax": lambda: StateEstimator(None, 0, 100.0),
        "percentile": lambda percentile=99.99: StateEstimator(None, 0, percentile),
        "mse": lambda images=16, candidates=24, percentile=100.0: StateEstimator(
            lambda *args: tensor_error(multipliers(candidates), *args), images, percentile
        ),
        "scan_output": lambda images=32, candidates=24, percentile=100.0: StateEstimator(
            lambda *args: scan_output(multipliers(candidates), *args), images, percentile
        ),
    }
    estimator = spec.estimator
    if estimator.name not in known:
        raise VisqError(f"{name}: the hidden state knows estimators {', '.join(known)}, not {estimator.name}")
    if spec.codebook.name != "uniform":
        raise VisqError(f"{name}: the hidden state is quantized uniformly, not with codebook {spec.codebook.name}")
    if (read := estimator.params.get("read", "rounded")) not in ("rounded", "sum"):
        raise VisqError(f"{name}: y reads the state `rounded` or the `sum`, not {read}")
    try:
        made = known[estimator.name](**{key: value for key, value in estimator.params.items() if key != "read"})
        return replace(made, read_quantized=reads_rounded(spec))
    except TypeError as error:
        raise VisqError(f"{name}: estimator {estimator.name}: {str(error).replace('<lambda>()', 'it')}") from error


def reads_rounded(spec: Spec) -> bool:
    """Returns whether y reads the rounded state (`read: rounded`) or the sum before rounding (`read: sum`)."""
    return bool(spec.estimator.params.get("read", "rounded") == "rounded")


def multipliers(candidates: int) -> Tensor:
    """Returns the multiples of the range that are tried: evenly spaced in [0.05, 1.2], and 1."""
    return torch.cat([torch.linspace(0.05, 1.2, candidates - 1), torch.ones(1)]).sort().values


def scan_output(
    candidates: Tensor,
    inputs: RecordedScan,
    base: Tensor,
    groups: Tensor,
    factors: Factors,
    spec: Spec,
    rounded: dict[str, Any],
) -> Tensor:
    """Returns scales of highest cosine similarity of y, chosen group after group in time order.

    A group's score covers its own steps and the step after them; earlier steps are quantized already. The public code
    of arXiv 2501.16738 does the same.
    """
    return ops.search_state_scales(
        inputs.u,
        inputs.delta,
        inputs.A,
        inputs.B,
        inputs.C,
        inputs.y,
        groups=groups,
        base=base,
        channel=factors.channel,
        state=factors.state,
        candidates=candidates.to(base.device),
        qmin=spec.qmin,
        qmax=spec.qmax,
        read_quantized=reads_rounded(spec),
        **rounded,
    )


def tensor_error(
    candidates: Tensor,
    inputs: RecordedScan,
    base: Tensor,
    groups: Tensor,
    factors: Factors,
    spec: Spec,
    rounded: dict[str, Any],
) -> Tensor:
    """Returns scales of smallest squared error of each group's states, with everything before them exact (OMSE)."""
    candidates = candidates.to(base.device)
    spread = (factors.channel[:, None] * factors.state).flatten()
    scales = candidates[:, None] * base
    error = torch.zeros(scales.shape, dtype=torch.double, device=base.device)
    for u, delta, B in chunks(inputs.u, inputs.delta, inputs.B, states=inputs.A.shape[1]):
        for h in ops.scan_states(u, delta, inputs.A, B).flatten(2):
            for t in range(0, len(base), _STEPS):
                steps = slice(t, t + _STEPS)
                code = h[steps] / (spread * base[steps, None])
                for i, share in enumerate(candidates.tolist()):
                    exact = code / share
                    residual = exact.round().clamp_(spec.qmin, spec.qmax).sub_(exact)
                    error[i, steps] += residual.square_() @ spread.square()
    error *= scales.square()
    group_error = error.new_zeros(len(candidates), int(groups.max()) + 1)
    group_error.index_add_(1, groups.long(), error)
    return base * candidates[group_error.argmin(0)][groups.long()]
