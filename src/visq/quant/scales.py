"""The smallest scale there is, and magnitudes that factors may be made of."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.integer.scales import fault_of_scale

#: No scale or factor is smaller. Three of these multiplied, 1e-36, and one over that are normal float32 numbers: the
#: hidden state's scale is step x channel x state.
SMALLEST = 1e-12


def usable(scale: Tensor) -> Tensor:
    """Returns `scale` with every entry raised to `SMALLEST`: a tensor of zeros gets a harmless quantizer."""
    return scale.clamp_min(SMALLEST)


def even_positive(values: Tensor, share: float) -> Tensor:
    """Returns magnitudes that factors may be made of: none below `share` of the largest.

    A dead channel then cannot become a factor of 1e-15. Where the largest is below `SMALLEST` there is nothing to even
    out, and all are 1.
    """
    largest = float(values.max())
    return values.clamp_min(share * largest) if largest >= SMALLEST else torch.ones_like(values)


def check_scale(what: str, *factors: Tensor) -> None:
    """Checks a scale that is a product of factors, each of any shape.

    Raises:
        VisqError: see `fault_of_scale`.
    """
    fault = fault_of_scale(*(factor.detach().float().cpu().numpy() for factor in factors))
    if fault is not None:
        raise VisqError(f"{what} {fault}")
