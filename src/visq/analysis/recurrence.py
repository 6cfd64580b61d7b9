"""The selective scan step by step, with its quantizers, and the error of h and y along it (arXiv 2501.16738, Fig.
7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visq.models.layers import SelectiveScan
from visq.quant.quantizer import StateQuantizer
from visq.quant.site import Site


@dataclass(frozen=True)
class Trace:
    """One scan seen from inside.

    Attributes:
        abar: [B, L, C, N] before rounding; bbar: [B, L, N, C], because its scale may go with channels.
        h: [B, L, C, N] before rounding; stored: what is carried to the next step.
        y: [B, L, C] before the site `y`.
    """

    abar: Tensor
    bbar: Tensor
    h: Tensor
    stored: Tensor
    y: Tensor


@torch.no_grad()
def trace(scan: SelectiveScan, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Trace:
    """The recurrence of `visq.ops.quantized_scan`, token by token; arguments as in `scan.forward`, whose fixed-point
    scan may round single values to the neighbouring code."""
    delta, B, C = applied(scan.site_delta, delta), applied(scan.site_b, B), applied(scan.site_c, C)
    abar, bbar = torch.exp(delta[..., None] * A), delta[:, :, None] * B[..., None]
    abar_q, bbar_q = applied(scan.site_abar, abar), applied(scan.site_bbar, bbar)
    quantizer = scan.site_h.quantizer
    scale = quantizer.scale().expand(u.shape[1], -1, -1) if isinstance(quantizer, StateQuantizer) else None
    hidden = abar.new_zeros(abar[:, 0].shape)
    before, after = [], []
    for t in range(u.shape[1]):
        hidden = abar_q[:, t] * hidden + (bbar_q[:, t] * u[:, t, None]).mT
        before.append(hidden)
        if scale is not None:
            assert isinstance(quantizer, StateQuantizer)
            codes = (hidden / scale[t]).round_().clamp_(quantizer.spec.qmin, quantizer.spec.qmax)
            hidden = codes.mul_(scale[t])
        after.append(hidden)
    h, stored = torch.stack(before, 1), torch.stack(after, 1)
    read = h if isinstance(quantizer, StateQuantizer) and not quantizer.read_quantized else stored
    return Trace(abar, bbar, h, stored, (read * C[:, :, None]).sum(-1))


def applied(site: Site, x: Tensor) -> Tensor:
    """The site's quantizer on x, past the site's hooks."""
    result: Tensor = x if site.quantizer is None else site.quantizer(x)
    return result


class RecurrenceError:
    """Relative error of h and y at each step of one scan, against the same scan of the FP32 network.

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
        """Errors as ||quantized - exact|| / ||exact|| by step, and the largest |h| by channel and by step, as they are
        and as shares of what the quantizer reaches (after reparameterization and scaling)."""
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
    """sqrt(error / signal), element by element."""
    return (error / signal.clamp_min(1e-300)).sqrt().tolist()
