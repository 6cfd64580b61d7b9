"""Measures the error of h and y along a selective scan (arXiv 2501.16738, Fig. 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visq.quant.quantizer import StateQuantizer
from visq.simulation.scan_trace import Trace


class RecurrenceError:
    """Sums up the relative error of h and y at each step of one scan, against the same scan of the FP32 network.

    Reparameterization folds a constant factor per state into the network, so h is compared up to the factor per state
    that fits best over all steps.
    """

    def __init__(self) -> None:
        self.h: Tensor = torch.zeros(())  # [3, L, N] sums of quantized^2, quantized x exact, exact^2
        self.y: Tensor = torch.zeros(())  # [2, L] sums of error^2, exact^2
        self.channel: Tensor = torch.zeros(())  # [C] largest |h|
        self.step: Tensor = torch.zeros(())  # [L]

    def observe(self, found: Trace, exact: Trace) -> None:
        a, b = found.stored.double(), exact.stored.double()
        self.h = self.h + torch.stack([(pair[0] * pair[1]).sum((0, 2)) for pair in ((a, a), (a, b), (b, b))])
        error = (found.y - exact.y).double()
        self.y = self.y + torch.stack([error.square().sum((0, 2)), exact.y.double().square().sum((0, 2))])
        self.channel = torch.maximum(self.channel, found.h.abs().amax((0, 1, 3)))
        self.step = torch.maximum(self.step, found.h.abs().amax((0, 2, 3)))

    def row(self, quantizer: Any) -> dict[str, Any]:
        """Returns errors ||quantized - exact|| / ||exact|| by step, and the largest |h| by channel and by step.

        The largest |h| also stands as a share of the quantizer's range, after reparameterization and scaling.
        """
        found, both, exact = self.h
        factor = both.sum(0) / found.sum(0).clamp_min(1e-300)
        error = (factor.square() * found - 2 * factor * both + exact).sum(1).clamp_min(0)
        row = {
            "h_error": ratio(error, exact.sum(1)),
            "y_error": ratio(*self.y),
            "channel_maximum": self.channel.tolist(),
            "step_maximum": self.step.tolist(),
        }
        if isinstance(quantizer, StateQuantizer):
            reach = quantizer.spec.qmax * float(quantizer.state.max())
            row["channel_factor"] = quantizer.channel.tolist()
            row["channel_after"] = (self.channel / quantizer.channel).tolist()
            row["step_after"] = (self.step / quantizer.step / float(quantizer.channel.max()) / reach).tolist()
        return row


def ratio(error: Tensor, signal: Tensor) -> list[float]:
    """Returns sqrt(error / signal), element by element."""
    return (error / signal.clamp_min(1e-300)).sqrt().tolist()
