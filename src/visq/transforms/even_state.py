"""Factors r_C x r_D fitted to the range of the hidden state, channel by channel and state by state (visq's own).

The factors of arXiv 2501.16738 carry exponents that sum to 1, so that they take away part of what channels and states
differ by: on vim_micro_imagenette half of the (channel, state) pairs still reach less than a twentieth of the largest,
which 4 bits round to zero. The range itself is nearly a product: fitted in logarithms, half of them reach a third.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.quant import few_images
from visq.quant.scales import even_positive
from visq.stages.factors import Factors
from visq.transforms.base import register
from visq.transforms.reparameterize import FLOOR
from visq.transforms.state_factors import StateFactors


def fitted_factors(largest: Tensor, share: float = 1.0, floor: float = FLOOR) -> Factors:
    """The product r_C[c] r_D[n] nearest to `largest` [C, N] > 0 in squared error of logarithms: row and column means;
    r_D to the power `share`."""
    logs = even_positive(largest, floor).log()
    return Factors(logs.mean(1).exp(), torch.ones(1), (share * (logs.mean(0) - logs.mean())).exp())


@register("even_state")
class EvenState(StateFactors):
    """Factors from the largest |h| over images and steps. A scale per step, if there is one, is searched after.

    Arguments:
        share: of r_D that is folded, 0 to 1. Folding divides Bbar by r_D and multiplies C by it: what makes h even
            makes them uneven, so that neither 0 nor 1 is best where all three have few bits.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise VisqError(f"even_state: share must be 0 to 1, got {share}")
        self.share = share

    def of_batch(self, magnitude: Tensor) -> Tensor:
        return magnitude.amax((0, 1))

    def combine(self, kept: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(kept, other)

    def factors(self, kept: Tensor, images: int) -> Factors:
        return fitted_factors(kept, self.share, max(FLOOR, few_images.share(images)))
