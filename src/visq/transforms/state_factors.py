"""Makes the factors r_C x r_L x r_D of the hidden state from |h|, folds r_D, and hands the rest to the quantizer.

The factors commute with the recurrence (arXiv 2501.16738, eqs. 16-21). To quantize h* = h / (r_C r_L r_D) is therefore
to quantize h with a scale that is a rank-1 product. visq keeps r_C and r_L in the state's scale
(`StateQuantizer.channel` and `.step`), which costs nothing at run time, and folds r_D into the rows of x_proj that make
B and C (eq. 24).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from visq import ops, parallel
from visq.models.layers import SelectiveScan
from visq.quant.scales import usable
from visq.stages.factors import Factors, chunks
from visq.stages.stage_run import StageRun
from visq.transforms.base import Transform


class StateFactors(Transform):
    """Computes the factors of every scan of the stage.

    Arguments:
        fold_state: fold r_D into x_proj (eq. 24); otherwise it stays in the state's scale.
        y_domain: quantize y / r_C instead of y (eq. 17); r_C is then part of y's scale.
    """

    def __init__(self, fold_state: bool = True, y_domain: bool = True) -> None:
        self.fold_state, self.y_domain = fold_state, y_domain

    def of_batch(self, magnitude: Tensor) -> Tensor:
        """Returns the statistics of |h| [B, L, C, N]."""
        raise NotImplementedError

    def combine(self, found: Tensor, other: Tensor) -> Tensor:
        """Returns the statistics of two batches together."""
        raise NotImplementedError

    def factors(self, statistics: Tensor, images: int, bits: int) -> Factors:
        """Returns the factors from the statistics of all images; the state has codes of `bits`."""
        raise NotImplementedError

    def apply(self, run: StageRun) -> None:
        scans = run.modules(SelectiveScan)
        found: dict[str, Tensor] = {}
        images = 0

        def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                u, delta, A, B, _ = args
                own: Tensor | None = None
                for u_i, delta_i, B_i in chunks(u, delta, B, states=A.shape[1]):
                    part = self.of_batch(ops.scan_states(u_i, delta_i, A, B_i).abs_())
                    own = part if own is None else self.combine(own, part)
                assert own is not None
                for part in parallel.each(own):
                    found[name] = self.combine(found[name], part) if name in found else part

            return hook

        handles = [module.register_forward_pre_hook(observe(name)) for name, module in scans.items()]
        try:
            for batch in run.forward():
                images += batch
        finally:
            for handle in handles:
                handle.remove()
        for name, statistics in found.items():
            bits = run.specs[f"{name}.h"].bits if f"{name}.h" in run.specs else 8
            factors = centred(self.factors(statistics, images, bits))
            if self.fold_state:
                owner, _, scan = name.rpartition(".")
                weight, b_rows, c_rows = run.model.get_submodule(owner).scan_projection(scan)  # type: ignore[operator]
                fold_state_factor(weight, b_rows, c_rows, factors.state)
                factors = Factors(factors.channel, factors.step, torch.ones_like(factors.state))
            run.factors[name] = factors
            if self.y_domain:
                run.smooth[f"{name}.y"] = factors.channel


def centred(factors: Factors) -> Factors:
    """Returns the same product with an r_D of geometric mean 1; the constant goes into r_C.

    Eqs. 26-31 leave the constant open, and h does not depend on it. Folding does: it divides B's rows of x_proj by r_D
    and multiplies C's, and these rows may share one scale with dt's.
    """
    constant = factors.state.log().mean().exp()
    return Factors(usable(factors.channel * constant), usable(factors.step), usable(factors.state / constant))


def fold_state_factor(weight: Tensor, b_rows: slice, c_rows: slice, factor: Tensor) -> None:
    """Divides the rows that make B by r_D and multiplies those that make C (eq. 24). weight [dt_rank + 2N, C], factor
    [N]."""
    with torch.no_grad():
        weight[b_rows] /= factor[:, None]
        weight[c_rows] *= factor[:, None]
