"""Calibration of what lives inside the recurrence: Abar, Bbar and the hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visq import ops
from visq.calibrate.jobs import Job
from visq.calibrate.stage_run import StageRun
from visq.errors import VisqError
from visq.models.layers import SelectiveScan
from visq.quant.inner import make_inner_estimator
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.spec import Spec
from visq.transforms.reparameterize import Factors, chunks


class ScanJob(Job):
    """Sites `abar`, `bbar` and `h` of one scan.

    Pass 0 collects ranges: of Abar and Bbar, and per step of |h| / (r_C r_D). Pass 1, when h asks for estimator `scan_output`, gathers the
    inputs of the first `images` images and searches the state's scales on the scan's output, greedily in time order with the history already
    quantized (the paper's public code), through `ops.search_state_scales`.
    """

    def __init__(self, name: str, scan: SelectiveScan, run: StageRun) -> None:
        self.name, self.scan = name, scan
        self.spec = run.specs.get(f"{name}.h")
        self.inner = {
            site: make_inner_estimator(run.specs[f"{name}.{site}"], site) for site in ("abar", "bbar") if f"{name}.{site}" in run.specs
        }
        self.factors = run.factors.get(name)
        self.maximum: Tensor | None = None
        self.inputs: list[tuple[Tensor, ...]] = []
        self.pass_index = 0
        self.passes = 1
        if self.spec is not None:
            self.search = StateSearch.from_spec(self.spec, name)
            self.passes = 2 if self.search else 1
        self.passes = max([self.passes, *(estimator.passes for estimator in self.inner.values())])

    def watched(self) -> nn.Module:
        return self.scan

    def observe(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        u, delta, A, B, C = args
        for estimator in self.inner.values():
            estimator.observe(delta, A, B)
        if self.spec is None:
            return
        if self.pass_index == 0:
            if self.factors is None:
                one = u.new_ones
                self.factors = Factors(one(u.shape[2]), one(u.shape[1]), one(A.shape[1]))
            spread = self.factors.channel[:, None] * self.factors.state
            for u_i, delta_i, B_i in chunks(u, delta, B, states=A.shape[1]):
                per_step = (ops.scan_states(u_i, delta_i, A, B_i).abs_() / spread).amax((0, 2, 3))
                if self.maximum is not None and self.maximum.shape != per_step.shape:
                    raise VisqError(f"{self.name}.h: a scale per step needs images of one size; use granularity tensor")
                self.maximum = per_step if self.maximum is None else torch.maximum(self.maximum, per_step)
        elif self.pass_index == 1 and self.search is not None:
            self.A = A
            room = self.search.images - sum(batch[0].shape[0] for batch in self.inputs)
            if room > 0:
                self.inputs.append(tuple(t[:room].contiguous() for t in (u, delta, B, C)))

    def end_pass(self) -> None:
        for estimator in self.inner.values():
            if self.pass_index < estimator.passes:
                estimator.end_pass()
        if self.spec is not None and self.pass_index == 0:
            self.base, self.groups = step_scales(self.maximum, self.factors, self.spec)  # type: ignore[arg-type]
        self.pass_index += 1

    def result(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {f"{self.name}.{site}": estimator.result() for site, estimator in self.inner.items()}
        if self.spec is not None:
            assert self.factors is not None
            step = self.base
            if self.search is not None:
                step = self.search.run(self, {site: found.get(f"{self.name}.{site}") for site in ("abar", "bbar")})
            found[f"{self.name}.h"] = StateQuantizer(self.spec, step, self.factors.channel, self.factors.state)
        return found


def step_scales(maximum: Tensor, factors: Factors, spec: Spec) -> tuple[Tensor, Tensor]:
    """Full-range scales of the steps, and the group of each step.

    Arguments:
        maximum: [L] max of |h_t| / (r_C r_D) over images, channels and states.
    Returns:
        base [L]: S[group] * r_L with the smallest S that clips nothing; groups [L] int32.
    """
    length = maximum.numel()
    kind = spec.granularity.kind
    if kind == "tensor":
        groups = torch.zeros(length, dtype=torch.int32)
    elif kind == "step":
        groups = torch.arange(length, dtype=torch.int32)
    elif kind == "step_groups":
        groups = contiguous_groups(maximum / factors.step, spec.granularity.k)
    else:
        raise VisqError(f"the hidden state knows granularities tensor, step and step_groups, not {kind}")
    smooth_maximum = maximum / factors.step
    count = int(groups.max()) + 1
    largest = torch.zeros(count).scatter_reduce_(0, groups.long(), smooth_maximum, "amax")
    largest = largest.clamp_min(1e-6 * float(largest.max())).clamp_min(1e-12)
    return largest[groups.long()] / spec.qmax * factors.step, groups


def contiguous_groups(maximum: Tensor, k: int) -> Tensor:
    """Temporal groups (QMamba's TGQ): k consecutive groups of steps minimizing sum_g |g| max_{t in g} r_t^2, by dynamic programming.

    maximum [L] -> labels [L] int32, ascending.
    """
    length = maximum.numel()
    if k > length:
        raise VisqError(f"k={k} groups of steps are asked for, but the sequence has only {length} steps")
    square = maximum.double().square()
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
    return labels


class StateSearch:
    """Estimator `scan_output` of the hidden state.

    Arguments:
        images: how many images the search holds and scores.
        candidates: multipliers of the full-range scale tried per group of steps, evenly spaced in (0, 1.2], the full range included.
    """

    def __init__(self, images: int = 32, candidates: int = 24) -> None:
        self.images = images
        self.multipliers = torch.cat([torch.linspace(0.05, 1.2, candidates - 1), torch.ones(1)]).sort().values

    @staticmethod
    def from_spec(spec: Spec, name: str) -> StateSearch | None:
        estimator = spec.estimator
        if estimator.name == "minmax":
            return None
        if estimator.name != "scan_output":
            raise VisqError(f"{name}.h: the hidden state knows estimators minmax and scan_output, not {estimator.name}")
        try:
            return StateSearch(**estimator.params)
        except TypeError as error:
            raise VisqError(f"{name}.h: estimator scan_output takes images and candidates ({error})") from error

    def run(self, job: ScanJob, inner: dict[str, nn.Module | None]) -> Tensor:
        u, delta, B, C = (torch.cat(parts) for parts in zip(*job.inputs, strict=True))
        arguments = {site: q.scan_argument() for site, q in inner.items() if isinstance(q, Quantizer)}
        assert job.spec is not None and job.factors is not None
        return ops.search_state_scales(
            u,
            delta,
            job.A,
            B,
            C,
            ops.selective_scan(u, delta, job.A, B, C),
            groups=job.groups,
            base=job.base,
            channel=job.factors.channel,
            state=job.factors.state,
            candidates=self.multipliers,
            qmin=job.spec.qmin,
            qmax=job.spec.qmax,
            read_quantized=True,
            **arguments,
        )
