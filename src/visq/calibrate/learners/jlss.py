"""Joint learning of smoothing factors and step sizes (JLSS, arXiv 2412.20386)."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.calibrate.learners.base import Learner, register
from visq.calibrate.learners.reconstruction import Reconstruction, cosine_distance
from visq.models.layers import Linear
from visq.quant.quantizer import Quantizer
from visq.stages.stage_run import StageRun


@register("jlss")
class JLSS(Learner):
    """Learns sigma, activation steps s_a and weight steps s_w of all quantized linears of a block, in the log domain.

    Block by block: the target is the FP32 block on FP32 inputs, the student the quantized block on the inputs it has in
    the quantized network. Rounding is passed straight through, clipped values have no gradient. The real-valued minimum
    of an asymmetric activation stays where calibration put it: its zero point follows from the learned step.

    Arguments:
        epochs, batch, holdout, drop: see `Reconstruction`.
        lr_scale: AdamW's rate for log s_a and log s_w, that is, the relative change of a step.
        lr_smooth: the rate for log sigma.
    """

    needs_student = True

    def __init__(
        self,
        epochs: int = 20,
        lr_scale: float = 5e-3,
        lr_smooth: float = 1e-2,
        batch: int = 32,
        holdout: float = 0.125,
        drop: float = 0.0,
    ) -> None:
        self.reconstruction = Reconstruction(epochs, batch, holdout, cosine_distance, drop=drop)
        self.lr_scale, self.lr_smooth = lr_scale, lr_smooth

    def tune(self, run: StageRun) -> None:
        layers = learned_linears(run)
        if not layers:
            return
        groups = [
            {
                "params": [p for layer in layers.values() for p in (layer.log_input, layer.log_weight)],
                "lr": self.lr_scale,
            },
            {"params": [layer.log_smooth for layer in layers.values()], "lr": self.lr_smooth},
        ]

        def assign(training: bool) -> None:
            for layer in layers.values():
                layer.assign()

        self.reconstruction.fit(run, groups, assign).report(run, "1 - cosine")


def learned_linears(run: StageRun) -> dict[str, LearnedLinear]:
    """The stage's linears on token sequences whose input and weight both have a uniform quantizer, by path."""
    found = {}
    sites = run.sites()
    for path, linear in run.modules(Linear).items():
        pair = [sites[f"{path}.{end}"].quantizer if f"{path}.{end}" in sites else None for end in ("in", "weight")]
        if all(isinstance(quantizer, Quantizer) and quantizer.table is None for quantizer in pair):
            found[path] = LearnedLinear(linear.in_features, *pair)  # type: ignore[arg-type]
    return found


class LearnedLinear:
    """One linear's parameters: x/sigma is quantized at s_a, W sigma at s_w.

    Attributes:
        log_smooth [C], log_input [tokens], log_weight [outputs]: leaves of the graph.
        low: [tokens] the real-valued minimum an asymmetric activation quantizer represents, in the smoothed domain.
    """

    def __init__(self, channels: int, activation: Quantizer, weight: Quantizer) -> None:
        self.activation, self.weight = activation, weight
        self.log_smooth = leaf(activation.scale.new_ones(channels) if activation.smooth is None else activation.smooth)
        self.log_input, self.log_weight = leaf(activation.scale), leaf(weight.scale)
        self.low = None if activation.zero_point is None else -activation.zero_point * activation.scale

    def assign(self) -> None:
        """Write functions of the parameters into both quantizers."""
        self.activation.smooth, self.weight.smooth = self.log_smooth.exp(), (-self.log_smooth).exp()
        self.activation.scale, self.weight.scale = self.log_input.exp(), self.log_weight.exp()
        if self.low is not None:
            zero_point = -self.low / self.activation.scale
            rounded = zero_point.round().clamp(0, self.activation.spec.qmax)
            # Straight-through: with low fixed, only the upper end of the range moves with the step.
            self.activation.zero_point = (
                zero_point + (rounded - zero_point).detach() if torch.is_grad_enabled() else rounded
            )


def leaf(value: Tensor) -> Tensor:
    return value.detach().log().requires_grad_()
