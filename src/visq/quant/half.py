"""What a recipe leaves in floating point has the precision of float16, in which artifacts store it; what learners make
of it has its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

#: Of the value itself: half a unit in the last place of float16.
RELATIVE = 2.0**-11
#: Of the tensor's largest value: what values below float16's normal range (6e-5) may change by.
OF_LARGEST = 2.0**-20


@torch.no_grad()
def round_parameters(parameters: Iterable[nn.Parameter]) -> None:
    """Round parameters to float16, each unless that would change some value by more than float16 changes values of its
    normal range and a millionth of the tensor's largest."""
    for parameter in parameters:
        if fits(parameter):
            parameter.copy_(parameter.half())


def fits(x: Tensor) -> bool:
    """Whether float16 holds x, finite, well enough."""
    if x.numel() == 0:
        return True
    allowed = x.abs() * RELATIVE + x.abs().max() * OF_LARGEST
    return bool(((x - x.half().float()).abs() <= allowed).all())


def stored(x: Tensor) -> Tensor:
    """x in float16 where that loses nothing, in float32 elsewhere."""
    half = x.half()
    return half if half.float().equal(x.float()) else x.float()
