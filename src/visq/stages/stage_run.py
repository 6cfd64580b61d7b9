"""One stage under calibration: the model, the stage's inputs, and what transforms and learners leave for the
quantizers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from visq import parallel
from visq.integer.spec import Spec
from visq.models.stage import Stage
from visq.quant.rotated import Rotation
from visq.quant.site import Site, named_sites, without_codes
from visq.stages.factors import Factors
from visq.stages.stream import Stream

M = TypeVar("M", bound=nn.Module)


@dataclass
class StageRun:
    """What transforms, jobs and learners see of the stage at hand.

    Attributes:
        inputs: the stage's FP32 inputs.
        targets: its FP32 outputs; complete once the first observing pass is over.
        student: its inputs in the network quantized so far; None unless a learner of the recipe needs them.
        specs: the targeted sites of this stage.
        smooth: per site, the per-channel divisor its quantizer applies.
        rotations: per site, the coordinates its quantizer works in.
        factors: per scan, the reparameterization factors of its state.
        search_images: how many images passes after the first see.
        seed: for anything that draws random numbers.
        summary: what a learner achieved, shown beside the stage's name in progress reports.
        notes: remarks for the user.
    """

    model: nn.Module
    stage: Stage
    following: list[Stage]
    inputs: Stream
    targets: Stream
    specs: dict[str, Spec]
    search_images: int | None
    seed: int
    student: Stream | None = None
    smooth: dict[str, Tensor] = field(default_factory=dict)
    rotations: dict[str, Rotation] = field(default_factory=dict)
    factors: dict[str, Factors] = field(default_factory=dict)
    summary: str = ""
    notes: list[str] = field(default_factory=list)

    def modules(self, kind: type[M]) -> dict[str, M]:
        """The stage's modules of a class, by path."""
        return {
            path: module
            for path, module in self.model.named_modules()
            if isinstance(module, kind) and belongs(path, self.stage)
        }

    def sites(self) -> dict[str, Site]:
        """The stage's targeted sites."""
        return {name: site for name, site in named_sites(self.model) if name in self.specs}

    def left_alone(self) -> list[nn.Parameter]:
        """The stage's parameters that no targeted site quantizes."""
        named = without_codes(self.model, self.sites().items())
        return [parameter for name, parameter in named if belongs(name, self.stage)]

    @torch.no_grad()
    def forward(self, images: int | None = None) -> Iterator[int]:
        """Run the stage over this process' share of its inputs. Hooks see what they are attached to, and merge what
        they find through `parallel.each`; yields the size of each batch, of all processes in order."""
        for _, batch in self.inputs.share(images):
            self.stage.forward(*batch)
            yield from parallel.each(batch[0].shape[0])


def belongs(path: str, stage: Stage) -> bool:
    return any(path == prefix or path.startswith(prefix + ".") for prefix in stage.modules)
