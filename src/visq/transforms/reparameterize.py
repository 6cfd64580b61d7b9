"""Evens out the hidden state by factors r_C x r_L x r_D (SSM reparameterization, arXiv 2501.16738, IV)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.quant.scales import even_positive
from visq.stages.factors import Factors
from visq.transforms.base import register
from visq.transforms.state_factors import StateFactors

#: Representatives of |h| along one axis (eqs. 26-28); `percentile` is p * max and `quantile` the 0.99 quantile, as in
#: the public code.
REPRESENTATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda rows: rows.mean(1),
    "max": lambda rows: rows.amax(1),
    "median": lambda rows: rows.median(1).values,
    "percentile": lambda rows: 0.99 * rows.amax(1),
    "quantile": lambda rows: quantile(rows, 0.99),
}

#: Dispersions that weigh the axes (eqs. 29-31); `same` gives each axis the exponent 1/3.
DISPERSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "std": lambda r: r.std() if r.numel() > 1 else r.new_zeros(()),
    "var": lambda r: r.var() if r.numel() > 1 else r.new_zeros(()),
    "range": lambda r: r.max() - r.min(),
    "same": lambda r: r.new_ones(()),
}

#: Representatives below this share of the axis' largest are raised to it: a dead channel must not become a factor of
#: 1e-15.
FLOOR = 1e-6


def quantile(rows: Tensor, q: float) -> Tensor:
    """Returns each row's quantile by linear interpolation; torch.quantile limits the row's length."""
    position = q * (rows.shape[1] - 1)
    low = int(position)
    ordered = rows.sort(1).values
    return torch.lerp(ordered[:, low], ordered[:, min(low + 1, rows.shape[1] - 1)], position - low)


def rank_one_factors(magnitude: Tensor, rep: str = "mean", disp: str = "std") -> Factors:
    """Returns r_X = r_X0 ^ p_X with p_X = Disp_X / (Disp_C + Disp_L + Disp_D), eqs. 26-31.

    Arguments:
        magnitude: [L, C, N] mean of |h| over the calibration images.
        rep, disp: keys of `REPRESENTATIVES` and `DISPERSIONS`.
    """
    raw = {}
    for axis, name in enumerate(("step", "channel", "state")):
        value = REPRESENTATIVES[rep](magnitude.movedim(axis, 0).flatten(1))
        raw[name] = even_positive(value, FLOOR)
    spread = {name: DISPERSIONS[disp](value) for name, value in raw.items()}
    total = sum(spread.values(), start=torch.zeros(()))
    if total <= 0:
        return Factors(*(torch.ones_like(raw[name]) for name in ("channel", "step", "state")))
    power = {name: raw[name] ** (spread[name] / total) for name in raw}
    return Factors(power["channel"], power["step"], power["state"])


@register("reparameterize")
class Reparameterize(StateFactors):
    """Makes the paper's factors from the mean of |h| over images.

    Arguments:
        rep, disp: how the factors are made (Table II of the paper; mean and std are its choice).
        steps: if false, |h| is averaged over steps first; r_L is then one number, for sequences of any length.
        fold_state, y_domain: see `StateFactors`.
    """

    def __init__(
        self, rep: str = "mean", disp: str = "std", fold_state: bool = True, y_domain: bool = True, steps: bool = True
    ) -> None:
        super().__init__(fold_state, y_domain)
        for value, known, what in ((rep, REPRESENTATIVES, "rep"), (disp, DISPERSIONS, "disp")):
            if value not in known:
                raise VisqError(f"reparameterize: unknown {what} '{value}'; known: {', '.join(known)}")
        self.rep, self.disp, self.steps = rep, disp, steps

    def of_batch(self, magnitude: Tensor) -> Tensor:
        return magnitude.sum(0)

    def combine(self, found: Tensor, other: Tensor) -> Tensor:
        return found + other

    def factors(self, statistics: Tensor, images: int, bits: int) -> Factors:
        magnitude = statistics / images
        return rank_one_factors(magnitude if self.steps else magnitude.mean(0, keepdim=True), self.rep, self.disp)
