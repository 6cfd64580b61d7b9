"""Jobs: each watches one place of a stage over several passes and makes its quantizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from visq.errors import VisqError
from visq.integer.spec import Granularity, Spec
from visq.quant import ladder
from visq.quant.estimators import make_estimator
from visq.quant.few_images import widened
from visq.quant.ladder import LadderQuantizer
from visq.quant.quantizer import Quantizer
from visq.quant.rotated import RotatedQuantizer, Rotation
from visq.quant.site import ACTIVATION, WEIGHT, Site, SiteQuantizer, site_parameter
from visq.stages.stage_run import StageRun

Observe = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@contextmanager
def naming(site: str) -> Iterator[None]:
    """Puts the site's name in front of any VisqError raised inside."""
    try:
        yield
    except VisqError as error:
        raise VisqError(f"{site}: {error}") from error


class Job:
    """Observes one module over the driver's passes.

    Attributes:
        passes: how many times the stage's inputs must be streamed.
        needs_gradient: the present pass wants the gradient of the task loss at the module's output.
    """

    passes = 1
    needs_gradient = False

    def watched(self) -> nn.Module:
        """Returns the module whose forward the job observes."""
        raise NotImplementedError

    def observe(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Observes one batch; a forward hook."""
        raise NotImplementedError

    def observe_gradient(self, x: Tensor, output: Tensor, gradient: Tensor) -> None:
        """Observes one batch with the gradient of the task loss at the output."""
        raise NotImplementedError

    def end_pass(self) -> None:
        raise NotImplementedError

    def result(self) -> dict[str, SiteQuantizer]:
        """Returns the quantizers by site name."""
        raise NotImplementedError


class ActivationJob(Job):
    """Feeds an activation site's tensor to its estimator."""

    def __init__(
        self, name: str, site: Site, spec: Spec, smooth: Tensor | None, rotation: Rotation | None = None
    ) -> None:
        self.name, self.site, self.rotation = name, site, rotation
        self.estimator = make_estimator(spec, ACTIVATION, smooth)
        self.passes = self.estimator.passes

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        return self.estimator.needs_gradient and self.estimator.pass_index > 0

    def watched(self) -> nn.Module:
        return self.site

    def observe(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        with naming(self.name):
            self.estimator.observe(output if self.rotation is None else self.rotation.into(output))

    def observe_gradient(self, x: Tensor, output: Tensor, gradient: Tensor) -> None:
        if self.rotation is not None:
            raise VisqError(f"{self.name}: an estimator that wants gradients cannot work in rotated coordinates")
        with naming(self.name):
            self.estimator.observe(output, gradient)

    def end_pass(self) -> None:
        if self.estimator.pass_index < self.estimator.passes:
            with naming(self.name):
                self.estimator.end_pass()

    def result(self) -> dict[str, SiteQuantizer]:
        with naming(self.name):
            return {self.name: rotated(widened(self.estimator.result(), self.estimator.images), self.rotation)}


def estimate_weight(run: StageRun, name: str, site: Site) -> SiteQuantizer:
    """Returns the quantizer of a weight whose estimator looks at the weight alone."""
    weight = site_parameter(run.model, name, site).detach()
    if not torch.isfinite(weight).all():
        raise VisqError(f"{name}: the weight holds NaN or Inf; the checkpoint is damaged")
    spec = run.specs[name]
    if spec.granularity.kind == "ladder":
        found = climb(name, site, spec, weight)
        if isinstance(found, LadderQuantizer):
            return found
        spec, note = found
        run.notes.append(note)
    rotation = run.rotations.get(name)
    weight = weight if rotation is None else rotation.into(weight)
    with naming(name):
        estimator = make_estimator(spec, WEIGHT, run.smooth.get(name))
        for _ in range(estimator.passes):
            estimator.observe(weight)
            estimator.end_pass()
        return rotated(estimator.result(), rotation)


def climb(name: str, site: Site, spec: Spec, A_log: Tensor) -> LadderQuantizer | tuple[Spec, str]:
    """Returns the ladder of A_log [C, N]; beyond the spec's limit, the spec of plain codes and a note that says so.

    Raises:
        VisqError: the site is not that of A_log.
    """
    if not site.parameter.startswith("A_") or A_log.ndim != 2:
        raise VisqError(f"{name}: a ladder is for A_log, not for {site.parameter}")
    scale, away = ladder.fit(A_log)
    limit = spec.granularity.limit
    if away <= limit:
        return LadderQuantizer(spec, scale)
    note = f"{name}: A is {away:.2f} from a decay ladder, more than {limit:g}, and keeps codes by channel"
    return spec.model_copy(update={"granularity": Granularity(kind="channel")}), note


def rotated(quantizer: Quantizer, rotation: Rotation | None) -> Quantizer:
    """Returns `quantizer`, which was made for rotated tensors, for the tensors themselves."""
    return quantizer if rotation is None else RotatedQuantizer.around(quantizer, rotation)
