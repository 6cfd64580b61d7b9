"""The base of estimators: the streaming protocol, and ranges along the granularity's axis."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from visq import parallel
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.groups import kmeans_1d, power_of_two_shifts
from visq.quant.quantizer import Quantizer
from visq.quant.scales import usable
from visq.quant.site import WEIGHT

#: Estimators of uniform quantizers, and of those with another codebook.
ESTIMATORS: dict[str, type[Estimator]] = {}
TABLE_ESTIMATORS: dict[str, type[Estimator]] = {}

E = TypeVar("E", bound="type[Estimator]")


def register(name: str, registry: dict[str, type[Estimator]] = ESTIMATORS) -> Callable[[E], E]:
    def decorate(cls: E) -> E:
        registry[name] = cls
        return cls

    return decorate


def make_estimator(spec: Spec, kind: str, smooth: Tensor | None = None) -> Estimator:
    """Returns the estimator that a spec names.

    Arguments:
        kind: the site's kind (`activation` or `weight`).
        smooth: [C], the divisor that the quantizer applies before rounding, if any.
    Raises:
        VisqError: unknown estimator or parameter.
    """
    name, params = spec.estimator.name, spec.estimator.params
    registry = ESTIMATORS if spec.codebook.name == "uniform" else TABLE_ESTIMATORS
    if name not in registry:
        what = "estimator" if registry is ESTIMATORS else f"estimator for codebook {spec.codebook.name}:"
        raise VisqError(f"unknown {what} '{name}'; known: {', '.join(sorted(registry))}")
    cls = registry[name]
    allowed = set(inspect.signature(cls.__init__).parameters) - {"self", "spec", "kind", "smooth"}
    if unknown := sorted(set(params) - allowed):
        raise VisqError(
            f"estimator '{name}' has no parameter {', '.join(unknown)}; known: {', '.join(sorted(allowed)) or 'none'}"
        )
    return cls(spec, kind, smooth, **params)


class Estimator:
    """Sees a site's tensor batch by batch, possibly several times, and makes a `Quantizer`.

    The driver feeds the whole calibration set once a pass: `observe(x)` for every batch, then `end_pass()`. After
    `passes` passes it takes `result()`. Pass 0 collects the range and the mean magnitude along the granularity's axis;
    subclasses add passes.

    Every x is viewed as [batch, rows, channels]: activations [B, L, C] with tokens as rows, weights [O, I...] as
    [1, O, I] with output channels as rows.
    """

    passes = 1
    #: Passes after the first want the gradient of the task loss at the site.
    needs_gradient = False

    def __init__(self, spec: Spec, kind: str, smooth: Tensor | None = None) -> None:
        self.spec, self.kind, self.smooth = spec, kind, smooth
        self.pass_index = 0
        self.minimum: Tensor | None = None
        self.maximum: Tensor | None = None
        self.magnitude: Tensor | None = None
        self.batches = 0
        self.images = 0

    def observe(self, x: Tensor, gradient: Tensor | None = None) -> None:
        """Observes one batch of the site's tensor, with the gradient of the task loss if `needs_gradient`."""
        x = self.canonical(x)
        if self.pass_index == 0:
            self.observe_range(x)
        else:
            self.observe_pass(x)

    def end_pass(self) -> None:
        if self.pass_index == 0 and self.minimum is None:
            raise VisqError("a site saw no calibration data; is the calibration set empty?")
        self.finish_pass()
        self.pass_index += 1

    def observe_pass(self, x: Tensor) -> None:
        """Observes x [B, R, C] in passes after the first."""
        raise NotImplementedError

    def finish_pass(self) -> None:
        """Ends a pass; the driver calls it once a pass."""

    def result(self) -> Quantizer:
        raise NotImplementedError

    def canonical(self, x: Tensor) -> Tensor:
        x = x.detach()
        if self.kind == WEIGHT:
            x = x.reshape(1, x.shape[0], -1)
        elif x.ndim == 2:
            x = x.unsqueeze(1)
        elif x.ndim == 4:
            x = x.reshape(x.shape[0], 1, -1)
        return x if self.smooth is None else x / self.smooth

    @property
    def row_axis(self) -> bool:
        """Returns whether the scale varies along rows (tokens of an activation, output channels of a weight)."""
        kind = self.spec.granularity.kind
        return kind.startswith("token") or (self.kind == WEIGHT and kind.startswith("channel"))

    @property
    def axis(self) -> int | None:
        """The axis of the site's own tensor that scales vary along."""
        if self.spec.granularity.kind == "tensor":
            return None
        return 0 if self.kind == WEIGHT else (-2 if self.row_axis else -1)

    def reduce(self, x: Tensor, reduction: Callable[..., Tensor]) -> Tensor:
        """Reduces x [B, R, C] to one value for each scale: [R], [C] or [1]."""
        if self.spec.granularity.kind == "tensor":
            return reduction(x, dim=(0, 1, 2)).view(1)
        return reduction(x, dim=(0, 2) if self.row_axis else (0, 1))

    def observe_range(self, x: Tensor) -> None:
        own = self.reduce(x, torch.amin), self.reduce(x, torch.amax), self.reduce(x.abs(), torch.mean).double()
        for (low, high, magnitude), images in parallel.each((own, x.shape[0])):
            self.merge_range(low, high, magnitude)
            self.images += images

    def merge_range(self, low: Tensor, high: Tensor, magnitude: Tensor) -> None:
        """Adds one batch's minimum, maximum and mean magnitude, each [G]."""
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise VisqError("NaN or Inf in the activations of a calibration image")
        if self.minimum is None or self.maximum is None or self.magnitude is None:
            self.minimum, self.maximum, self.magnitude = low, high, magnitude
        else:
            if low.shape != self.minimum.shape:
                raise VisqError(
                    f"a static scale per {self.spec.granularity.kind} needs images of one size: got sequences of "
                    f"{self.minimum.numel()} and {low.numel()}; use granularity tensor or channel"
                )
            self.minimum, self.maximum = torch.minimum(self.minimum, low), torch.maximum(self.maximum, high)
            self.magnitude = self.magnitude + magnitude
        self.batches += 1

    def groups(self) -> Tensor | None:
        """Returns the k-means labels of the axis' elements by mean magnitude; None unless scales are grouped."""
        granularity = self.spec.granularity
        assert self.magnitude is not None
        return kmeans_1d(self.magnitude / self.batches, granularity.k) if granularity.grouped else None

    def group_range(self, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the minimum and maximum of each group [G]; an empty group takes the whole tensor's range."""
        low, high = self.minimum, self.maximum
        assert low is not None and high is not None
        if labels is None:
            return low, high
        k = self.spec.granularity.k
        empty = torch.bincount(labels, minlength=k) == 0
        group_low = low.new_full((k,), torch.inf).scatter_reduce_(0, labels, low, "amin")
        group_high = high.new_full((k,), -torch.inf).scatter_reduce_(0, labels, high, "amax")
        return torch.where(empty, low.min(), group_low), torch.where(empty, high.max(), group_high)

    def make(self, low: Tensor, high: Tensor, labels: Tensor | None) -> Quantizer:
        """Returns a uniform quantizer whose codes span [low, high] of each group."""
        scale, zero_point = self.grid(low, high, labels)
        return Quantizer(self.spec, scale, zero_point, axis=self.axis, group=labels, smooth=self.smooth)

    def grid(self, low: Tensor, high: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns scales and zero points [G] with which codes span [low, high] of each group.

        Symmetric ones span [-max, max] (eq. 3 of arXiv 2501.16738) and have no zero point.
        """
        spec = self.spec
        if spec.symmetric:
            scale = usable(torch.maximum(low.abs(), high.abs()) / spec.qmax)
            if spec.granularity.power_of_two and labels is not None:
                scale = scale.max() * 2.0 ** -power_of_two_shifts(scale)
            return scale, None
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = usable((high - low) / spec.qmax)
        return scale, (-low / scale).round().clamp(0, spec.qmax)
