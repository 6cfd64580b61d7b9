"""Random dropping of quantizers while a learner descends (QDrop, arXiv 2203.05740)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.quant.site import ACTIVATION, Site, SiteQuantizer


class Dropped(SiteQuantizer):
    """Stands in for an activation's quantizer and leaves each value as it is with probability `share`."""

    def __init__(self, quantizer: SiteQuantizer, share: float, generator: torch.Generator) -> None:
        super().__init__()
        self.quantizer, self.share, self.generator = quantizer, share, generator

    def forward(self, x: Tensor) -> Tensor:
        dropped = torch.rand(x.shape, generator=self.generator) < self.share
        return torch.where(dropped.to(x.device), x, self.quantizer(x))


@contextmanager
def dropping(sites: Iterable[Site], share: float, generator: torch.Generator) -> Iterator[None]:
    """Drops a share of the codes of all activations within the block; a share of 0 changes nothing and draws nothing.

    Weights keep their codes, and so do Abar, Bbar and h, which the scan rounds itself.
    """
    watched = [site for site in sites if share and site.kind == ACTIVATION and site.quantizer is not None]
    quantizers = [site.quantizer for site in watched]
    for site, quantizer in zip(watched, quantizers, strict=True):
        assert quantizer is not None
        site.quantizer = Dropped(quantizer, share, generator)
    try:
        yield
    finally:
        for site, quantizer in zip(watched, quantizers, strict=True):
            site.quantizer = quantizer


def check_share(learner: str, share: float) -> None:
    """Raises VisqError for a share that is no probability below 1."""
    if not 0 <= share < 1:
        raise VisqError(f"{learner} needs 0 <= drop < 1, got {share}")
