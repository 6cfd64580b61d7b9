"""Estimators of the discretized parameters Abar and Bbar, which exist only inside the scan.

Neither tensor is ever materialized for its range: Abar = exp(delta A) is monotone in both factors and Bbar = delta B is a product, so their
extremes follow from the extremes of the factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.quant.quantizer import Quantizer
from visq.quant.spec import Spec

INNER_ESTIMATORS: dict[str, type[InnerMinMax]] = {}


def make_inner_estimator(spec: Spec, site: str) -> InnerMinMax:
    """site is `abar` or `bbar`; raises VisqError for an unknown estimator or a granularity other than tensor."""
    name = spec.estimator.name
    if name not in INNER_ESTIMATORS:
        raise VisqError(f"{site} knows estimators {', '.join(INNER_ESTIMATORS)}, not {name}")
    if spec.granularity.kind != "tensor":
        raise VisqError(f"{site} is quantized per tensor, not per {spec.granularity.kind}")
    try:
        return INNER_ESTIMATORS[name](spec, site, **spec.estimator.params)
    except TypeError as error:
        raise VisqError(f"{site}: estimator {name}: {error}") from error


def register(name: str) -> Callable[[type[InnerMinMax]], type[InnerMinMax]]:
    def decorate(cls: type[InnerMinMax]) -> type[InnerMinMax]:
        INNER_ESTIMATORS[name] = cls
        return cls

    return decorate


@register("minmax")
class InnerMinMax:
    """The full range of Abar (in (0, 1], hence unsigned codes) or Bbar (signed)."""

    passes: ClassVar[int] = 1

    def __init__(self, spec: Spec, site: str) -> None:
        if not spec.symmetric or spec.signed != (site == "bbar"):
            raise VisqError("Abar lies in (0, 1] and Bbar around zero: both are symmetric, Abar with signed: false, Bbar with signed: true")
        self.spec, self.site = spec, site
        self.maximum = torch.zeros(())

    def observe(self, delta: Tensor, A: Tensor, B: Tensor) -> None:
        """delta [B, L, C] >= 0, A [C, N] < 0, B [B, L, N]."""
        if self.site == "abar":
            largest = (delta.amin((0, 1)) * A.amax(1)).exp().max()
        else:
            largest = (delta.amax(-1) * B.abs().amax(-1)).max()
        self.maximum = torch.maximum(self.maximum, largest)

    def end_pass(self) -> None:
        pass

    def result(self) -> Quantizer:
        return Quantizer(self.spec, (self.maximum / self.spec.qmax).clamp_min(1e-12).view(1))
