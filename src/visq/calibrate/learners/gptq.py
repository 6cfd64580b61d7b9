"""GPTQ: rounds weights column by column; later columns correct the error of earlier ones (arXiv 2210.17323)."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.calibrate.learners.base import Learner, register
from visq.errors import VisqError
from visq.models.layers import Linear
from visq.quant.quantizer import Quantizer
from visq.stages.layer_inputs import observe_inputs
from visq.stages.stage_run import StageRun


@register("gptq")
class GPTQ(Learner):
    """Moves the weights of all quantized linears onto their quantizers' grids; baking then changes nothing.

    The Hessian of a linear's squared output error is the second moment of its input. The input is the one in the
    quantized network, through the linear's own activation quantizer.

    Arguments:
        damp: share of the mean diagonal added to the Hessian's diagonal.
    """

    needs_student = True

    def __init__(self, damp: float = 0.01) -> None:
        if damp <= 0:
            raise VisqError(f"gptq: damp must be positive, not {damp}")
        self.damp = damp

    def tune(self, run: StageRun) -> None:
        assert run.student is not None
        layers = {
            path: layer for path, layer in run.modules(Linear).items() if type(layer.site_weight.quantizer) is Quantizer
        }
        inputs = observe_inputs(layers, run.stage.forward, run.student.batches(), moment=True)
        for path, layer in layers.items():
            assert isinstance(layer.site_weight.quantizer, Quantizer)
            layer.weight.data = round_columns(
                layer.weight.data, layer.site_weight.quantizer, inputs[path].moment, self.damp
            )


def round_columns(weight: Tensor, quantizer: Quantizer, moment: Tensor, damp: float) -> Tensor:
    """Returns grid points near `weight` [O, C] of small error tr((W - W^) M (W - W^)^T).

    Columns go in order of falling second moment (`act_order`). With H^-1 = U^T U, rounding column i leaves the error
    e = (w_i - q_i) / U_ii, and the columns j > i move by -e U_ij.

    Arguments:
        quantizer: of the weight; its scales stay.
        moment: M [C, C] float64, the input's second moment.
    """
    divisor = weight.new_ones(weight.shape[1]) if quantizer.smooth is None else quantizer.smooth
    grid = Quantizer(
        quantizer.spec,
        quantizer.scale,
        quantizer.zero_point,
        axis=quantizer.axis,
        group=quantizer.group,
        table=quantizer.table,
    )
    moment = moment * divisor * divisor[:, None]
    order = moment.diagonal().argsort(descending=True, stable=True)
    hessian = moment[order][:, order]
    hessian.diagonal().add_(damp * float(hessian.diagonal().mean()) + 1e-30)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    rest = (weight / divisor)[:, order].double()
    rounded = torch.empty_like(weight)
    for i in range(rest.shape[1]):
        column = grid(rest[:, i : i + 1].float())
        rounded[:, order[i]] = column[:, 0]
        error = (rest[:, i : i + 1] - column) / upper[i, i]
        rest[:, i + 1 :] -= error * upper[i, i + 1 :]
    return rounded * divisor
