"""Factors r_C x r_L x r_D of the hidden state: streamed from |h|, folded and handed to the state's quantizer.

The factors commute with the recurrence (arXiv 2501.16738, eqs. 16-21), so quantizing h* = h / (r_C r_L r_D) is
quantizing h with a scale that is a rank-1 product. visq therefore keeps r_C and r_L in the state's scale
(`StateQuantizer.channel` and `.step`), where they cost nothing at run time, and folds only r_D into the rows of x_proj
that make B and C (eq. 24).
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
        y_domain: quantize y in the y / r_C domain (eq. 17), r_C being part of y's dequantization.
    """

    def __init__(self, fold_state: bool = True, y_domain: bool = True) -> None:
        self.fold_state, self.y_domain = fold_state, y_domain

    def of_batch(self, magnitude: Tensor) -> Tensor:
        """What is kept of |h| [B, L, C, N]."""
        raise NotImplementedError

    def combine(self, kept: Tensor, other: Tensor) -> Tensor:
        """What is kept of two batches."""
        raise NotImplementedError

    def factors(self, kept: Tensor, images: int) -> Factors:
        """The factors, from what is kept of all images."""
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
        for name, kept in found.items():
            factors = centred(self.factors(kept, images))
            if self.fold_state:
                owner, _, scan = name.rpartition(".")
                weight, b_rows, c_rows = run.model.get_submodule(owner).scan_projection(scan)  # type: ignore[operator]
                fold_state_factor(weight, b_rows, c_rows, factors.state)
                factors = Factors(factors.channel, factors.step, torch.ones_like(factors.state))
            run.factors[name] = factors
            if self.y_domain:
                run.smooth[f"{name}.y"] = factors.channel


def centred(factors: Factors) -> Factors:
    """The same product with r_D of geometric mean 1, its constant moved into r_C.

    Eqs. 26-31 leave that constant arbitrary, and h does not notice; but folding divides B's rows of x_proj by it and
    multiplies C's, which a scale they share with each other and with dt's rows does notice.
    """
    constant = factors.state.log().mean().exp()
    return Factors(usable(factors.channel * constant), usable(factors.step), usable(factors.state / constant))


def fold_state_factor(weight: Tensor, b_rows: slice, c_rows: slice, factor: Tensor) -> None:
    """Eq. 24: 1/r_D into the rows that make B, r_D into those that make C. weight [dt_rank + 2N, C], factor [N]."""
    with torch.no_grad():
        weight[b_rows] /= factor[:, None]
        weight[c_rows] *= factor[:, None]
