"""SSM reparameterization: a rank-1 factor r_C x r_L x r_D that evens out the hidden state (arXiv 2501.16738, IV).

The factors commute with the recurrence (eqs. 16-21), so quantizing h* = h / (r_C r_L r_D) is quantizing h with a scale
that is a rank-1 product. visq therefore keeps r_C and r_L in the state's scale (`StateQuantizer.channel` and `.step`),
where they cost nothing at run time, and folds only r_D into the rows of x_proj that make B and C (eq. 24).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from visq import ops, parallel
from visq.errors import VisqError
from visq.models.layers import SelectiveScan
from visq.transforms.base import Transform, register

if TYPE_CHECKING:
    from visq.calibrate.stage_run import StageRun

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


@dataclass(frozen=True)
class Factors:
    """r_C [C], r_L [L] in scan order (or [1]), r_D [N]; all positive. A constant moved between them changes nothing."""

    channel: Tensor
    step: Tensor
    state: Tensor


def quantile(rows: Tensor, q: float) -> Tensor:
    """Row-wise quantile by linear interpolation; unlike torch.quantile without a limit on the row's length."""
    position = q * (rows.shape[1] - 1)
    low = int(position)
    ordered = rows.sort(1).values
    return torch.lerp(ordered[:, low], ordered[:, min(low + 1, rows.shape[1] - 1)], position - low)


def rank_one_factors(magnitude: Tensor, rep: str = "mean", disp: str = "std") -> Factors:
    """Eqs. 26-31.

    Arguments:
        magnitude: [L, C, N] mean of |h| over the calibration images.
        rep, disp: keys of `REPRESENTATIVES` and `DISPERSIONS`.
    Returns:
        r_X = r_X0 ^ p_X with p_X = Disp_X / (Disp_C + Disp_L + Disp_D).
    """
    raw = {}
    for axis, name in enumerate(("step", "channel", "state")):
        value = REPRESENTATIVES[rep](magnitude.movedim(axis, 0).flatten(1))
        raw[name] = value.clamp_min(max(FLOOR * float(value.max()), 1e-30))
    spread = {name: DISPERSIONS[disp](value) for name, value in raw.items()}
    total = sum(spread.values(), start=torch.zeros(()))
    if total <= 0:
        return Factors(*(torch.ones_like(raw[name]) for name in ("channel", "step", "state")))
    power = {name: raw[name] ** (spread[name] / total) for name in raw}
    return Factors(power["channel"], power["step"], power["state"])


def centred(factors: Factors) -> Factors:
    """The same product with r_D of geometric mean 1, its constant moved into r_C.

    Eqs. 26-31 leave that constant arbitrary, and h does not notice; but folding divides B's rows of x_proj by it and
    multiplies C's, which a scale they share with each other and with dt's rows does notice.
    """
    constant = factors.state.log().mean().exp()
    return Factors(factors.channel * constant, factors.step, factors.state / constant)


def fold_state_factor(weight: Tensor, b_rows: slice, c_rows: slice, factor: Tensor) -> None:
    """Eq. 24: 1/r_D into the rows that make B, r_D into those that make C. weight [dt_rank + 2N, C], factor [N]."""
    with torch.no_grad():
        weight[b_rows] /= factor[:, None]
        weight[c_rows] *= factor[:, None]


@register("reparameterize")
class Reparameterize(Transform):
    """Computes the factors of every scan of the stage from streamed |h|; folds r_D; hands r_C and r_L to the state's
    quantizer.

    Arguments:
        rep, disp: how the factors are made (Table II of the paper; mean and std are its choice).
        fold_state: fold r_D into x_proj (eq. 24); otherwise it stays in the state's scale.
        y_domain: quantize y in the y / r_C domain (eq. 17), r_C being part of y's dequantization.
        steps: with false, |h| is averaged over steps first, so that r_L is one number and holds for any length.
    """

    def __init__(
        self, rep: str = "mean", disp: str = "std", fold_state: bool = True, y_domain: bool = True, steps: bool = True
    ) -> None:
        for value, known, what in ((rep, REPRESENTATIVES, "rep"), (disp, DISPERSIONS, "disp")):
            if value not in known:
                raise VisqError(f"reparameterize: unknown {what} '{value}'; known: {', '.join(known)}")
        self.rep, self.disp, self.fold_state, self.y_domain, self.steps = rep, disp, fold_state, y_domain, steps

    def apply(self, run: StageRun) -> None:
        scans = run.modules(SelectiveScan)
        sums: dict[str, Tensor] = {}
        images = 0

        def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                u, delta, A, B, _ = args
                parts = chunks(u, delta, B, states=A.shape[1])
                own = torch.zeros(())
                for u_i, delta_i, B_i in parts:
                    own = own + ops.scan_states(u_i, delta_i, A, B_i).abs_().sum(0)
                for total in parallel.each(own):
                    sums[name] = sums.get(name, 0) + total

            return hook

        handles = [module.register_forward_pre_hook(observe(name)) for name, module in scans.items()]
        try:
            for batch in run.forward():
                images += batch
        finally:
            for handle in handles:
                handle.remove()
        for name, total in sums.items():
            magnitude = total / images
            if not self.steps:
                magnitude = magnitude.mean(0, keepdim=True)
            factors = centred(rank_one_factors(magnitude, self.rep, self.disp))
            if self.fold_state:
                owner, _, scan = name.rpartition(".")
                weight, b_rows, c_rows = run.model.get_submodule(owner).scan_projection(scan)  # type: ignore[operator]
                fold_state_factor(weight, b_rows, c_rows, factors.state)
                factors = Factors(factors.channel, factors.step, torch.ones_like(factors.state))
            run.factors[name] = factors
            if self.y_domain:
                run.smooth[f"{name}.y"] = factors.channel


def chunks(u: Tensor, delta: Tensor, B: Tensor, states: int, limit: int = 2**24) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Slices of a batch whose hidden states [b, L, C, N] hold at most `limit` numbers (or one image)."""
    per_image = u.shape[1] * u.shape[2] * states
    size = max(1, limit // per_image)
    return [(u[i : i + size], delta[i : i + size], B[i : i + size]) for i in range(0, u.shape[0], size)]
