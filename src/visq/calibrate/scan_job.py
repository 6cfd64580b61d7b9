"""Calibrates the tensors that exist inside the recurrence only: Abar, Bbar and the hidden state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from visq import parallel
from visq.calibrate.jobs import Job, naming
from visq.calibrate.state_search import RecordedScan, StepRange, make_state_estimator, step_scales
from visq.models.layers import SelectiveScan
from visq.quant.discretized import make_discretized_estimator
from visq.quant.few_images import widened_scales
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.site import SiteQuantizer
from visq.stages.factors import Factors
from visq.stages.stage_run import StageRun


class ScanJob(Job):
    """Calibrates the sites `abar`, `bbar` and `h` of one scan.

    Pass 0 streams ranges and histograms. Pass 1 gathers the scan's inputs for a few images, if an estimator scores the
    scan's output. Abar is then chosen with everything else exact, Bbar with Abar quantized, and h with both.
    """

    def __init__(self, name: str, scan: SelectiveScan, run: StageRun) -> None:
        self.name, self.scan = name, scan
        self.discretized = {
            site: make_discretized_estimator(run.specs[f"{name}.{site}"], site)
            for site in ("abar", "bbar")
            if f"{name}.{site}" in run.specs
        }
        self.spec = run.specs.get(f"{name}.h")
        self.factors = run.factors.get(name)
        images = [estimator.images for estimator in self.discretized.values()]
        if self.spec is not None:
            self.state = make_state_estimator(self.spec, f"{name}.h")
            self.range = StepRange(self.state.percentile)
            images.append(self.state.images)
        self.images = max(images, default=0)
        self.inputs: list[tuple[Tensor, ...]] = []
        self.pass_index = 0
        self.passes = 2 if self.images else 1

    def watched(self) -> nn.Module:
        return self.scan

    def observe(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        u, delta, A, B, C = args
        if self.pass_index > 0:
            self.gather(A, (u, delta, B, C, output))
            return
        for site, estimator in self.discretized.items():
            with naming(f"{self.name}.{site}"):
                estimator.observe(delta, A, B)
        if self.spec is not None:
            if self.factors is None:
                self.factors = Factors(u.new_ones(u.shape[2]), u.new_ones(u.shape[1]), u.new_ones(A.shape[1]))
            with naming(f"{self.name}.h"):
                self.range.observe(u, delta, A, B, self.factors)

    def gather(self, A: Tensor, batch: tuple[Tensor, ...]) -> None:
        self.A = A
        room = self.images - sum(part[0].shape[0] for part in self.inputs)
        if room > 0:
            self.inputs += parallel.each(tuple(tensor[:room].contiguous() for tensor in batch))

    def end_pass(self) -> None:
        self.pass_index += 1

    def result(self) -> dict[str, SiteQuantizer]:
        found: dict[str, SiteQuantizer] = {}
        rounded: dict[str, Any] = {}
        for site, estimator in self.discretized.items():
            score = self.score(site, estimator.images, rounded) if estimator.images else None
            with naming(f"{self.name}.{site}"):
                quantizer = estimator.result(score)
            rounded[site] = quantizer.scan_argument()
            found[f"{self.name}.{site}"] = quantizer
        if self.spec is not None:
            with naming(f"{self.name}.h"):
                found[f"{self.name}.h"] = self.state_quantizer(rounded)
        return found

    def score(self, site: str, images: int, rounded: dict[str, Any]) -> Callable[[Quantizer], float]:
        """Returns a function: quantizer of `site` -> loss of y on `images` images, with other sites `rounded`."""
        inputs, others = self.scan_inputs(images), dict(rounded)
        return lambda quantizer: inputs.loss(**others, **{site: quantizer.scan_argument()})

    def state_quantizer(self, rounded: dict[str, Any]) -> StateQuantizer:
        assert self.spec is not None and self.factors is not None
        step, groups = step_scales(self.range.result(), self.factors, self.spec)
        if self.state.search is not None:
            inputs = self.scan_inputs(self.state.images)
            step = self.state.search(inputs, step, groups, self.factors, self.spec, rounded)
        if self.spec.granularity.kind == "step":
            step = widened_scales(step, self.range.images, self.spec.bits)
        if self.spec.granularity.kind == "tensor" and (step == step[0]).all():
            step = step[:1]  # one number, for sequences of any length
        return StateQuantizer(self.spec, step, self.factors.channel, self.factors.state, self.state.read_quantized)

    def scan_inputs(self, images: int) -> RecordedScan:
        """Returns the gathered inputs and FP32 outputs of the first `images` images."""
        u, delta, B, C, y = (torch.cat(parts)[:images] for parts in zip(*self.inputs, strict=True))
        return RecordedScan(u, delta, self.A, B, C, y)
