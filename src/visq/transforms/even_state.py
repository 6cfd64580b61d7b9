"""Fits factors r_C x r_D to the range of the hidden state, channel by channel and state by state (visq's own).

The factors of arXiv 2501.16738 have exponents that sum to 1 and remove only a part of the differences. Half of the
(channel, state) pairs of vim_micro_imagenette then still reach less than a twentieth of the largest, which 4 bits round
to zero. The range itself is nearly a product: after a fit in logarithms half of them reach a third.
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
    """Returns the product r_C[c] r_D[n] nearest to `largest` [C, N] in squared error of logarithms, r_D to the power
    `share`.

    The fit is the means of rows and columns. No entry counts as less than `floor` times the largest.
    """
    logs = even_positive(largest, floor).log()
    return Factors(logs.mean(1).exp(), logs.new_ones(1), (share * (logs.mean(0) - logs.mean())).exp())


@register("even_state")
class EvenState(StateFactors):
    """Makes factors from the largest |h| over images and steps. Scales for steps are searched afterwards.

    Arguments:
        share: the power of r_D that is folded, 0 to 1. Folding divides Bbar by r_D and multiplies C by it: h becomes
            even and they uneven, so that neither 0 nor 1 is best if all three have few bits.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise VisqError(f"even_state: share must be 0 to 1, got {share}")
        self.share = share

    def of_batch(self, magnitude: Tensor) -> Tensor:
        return magnitude.amax((0, 1))

    def combine(self, found: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(found, other)

    def factors(self, statistics: Tensor, images: int, bits: int) -> Factors:
        return fitted_factors(statistics, self.share, max(FLOOR, few_images.share(images, bits)))
