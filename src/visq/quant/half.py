"""Rounds parameters without codes to float16, in which artifacts store them. Parameters that a learner changed keep
float32."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

#: Error allowed in units of the value: half a unit in the last place of float16.
RELATIVE = 2.0**-11
#: Error allowed in units of the tensor's largest value, for values below float16's normal range (6e-5).
OF_LARGEST = 2.0**-20


@torch.no_grad()
def round_parameters(parameters: Iterable[nn.Parameter]) -> None:
    """Rounds every parameter that `fits` float16, in place."""
    for parameter in parameters:
        if fits(parameter):
            parameter.copy_(parameter.half())


def fits(x: Tensor) -> bool:
    """Returns whether float16 holds every value of x up to `RELATIVE` of itself plus `OF_LARGEST` of the largest."""
    if x.numel() == 0:
        return True
    allowed = x.abs() * RELATIVE + x.abs().max() * OF_LARGEST
    return bool(((x - x.half().float()).abs() <= allowed).all())


def stored(x: Tensor) -> Tensor:
    """Returns x in float16 if that loses nothing, otherwise in float32."""
    half = x.half()
    return half if half.float().equal(x.float()) else x.float()
