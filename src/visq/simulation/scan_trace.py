"""Runs the selective scan step by step and keeps Abar, Bbar and every state, which kernels hold in registers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visq.models.layers import SelectiveScan
from visq.quant.quantizer import StateQuantizer
from visq.quant.site import Site


@dataclass(frozen=True)
class Trace:
    """The inner values of one scan.

    Attributes:
        abar: [B, L, C, N] before rounding.
        bbar: [B, L, N, C] before rounding; channels come last because its scale may go along them.
        h: [B, L, C, N], the states before rounding.
        stored: [B, L, C, N], the rounded states that the next step reads.
        y: [B, L, C] before the site `y`.
    """

    abar: Tensor
    bbar: Tensor
    h: Tensor
    stored: Tensor
    y: Tensor


@torch.no_grad()
def trace(scan: SelectiveScan, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Trace:
    """Runs the recurrence of `visq.ops.quantized_scan` token by token; arguments as in `scan.forward`.

    The fixed-point scan may round single values to the neighbouring code instead.
    """
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
    """Applies a site's quantizer to x without running the site's hooks."""
    result: Tensor = x if site.quantizer is None else site.quantizer(x)
    return result
