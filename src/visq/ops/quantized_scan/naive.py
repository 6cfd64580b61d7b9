"""The quantized scan as a plain loop over tokens: the oracle of the fast kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visq.ops import backends
from visq.ops._scan import Grads, Rounding, ScanInputs, midpoints


def quantize_factor(x: Tensor, table: Tensor | None, uniform: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Returns quantized x, and the straight-through slope: 1 inside the clip range, 0 outside."""
    if table is not None:
        code = torch.searchsorted(midpoints(table), x.contiguous(), right=False)
        value = torch.where(x.isnan(), x, table[code])
        return value, ((x >= table[0]) & (x <= table[-1])).to(x.dtype)
    if uniform:
        scale = torch.tensor(uniform[0], dtype=x.dtype, device=x.device)
        code = torch.round(x * (1 / scale))
        inside = (code >= uniform[1]) & (code <= uniform[2])
        return code.clamp(uniform[1], uniform[2]) * scale, inside.to(x.dtype)
    return x, torch.ones_like(x)


class RoundState:
    """Rounds the state at each step; the identity when it has no step."""

    def __init__(self, rounding: Rounding) -> None:
        self.step, self.range = rounding.step, rounding.state_range
        if rounding.channel is not None and rounding.state is not None:
            self.factor = rounding.channel[:, None] * rounding.state
            self.inverse = 1 / self.factor

    def __call__(self, h: Tensor, t: int, multiplier: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Returns hq and the straight-through slope, for h [..., d_inner, N] at step t."""
        if self.step is None:
            return h, torch.ones_like(h)
        step = self.step[t] * multiplier
        code = torch.round(h * ((1 / step) * self.inverse))
        low, high = self.range
        inside = (code >= low) & (code <= high)
        return code.clamp(low, high) * (step * self.factor), inside.to(h.dtype)


@backends.register("quantized_scan", "naive")
def forward(inputs: ScanInputs, rounding: Rounding) -> Tensor:
    """Returns y [B, L, d_inner]."""
    u, delta, A, B, C = inputs
    round_state = RoundState(rounding)
    hq = u.new_zeros(u.shape[0], *A.shape)
    ys = []
    for t in range(u.shape[1]):
        abar, _ = quantize_factor(torch.exp(delta[:, t, :, None] * A), rounding.abar_table, rounding.abar_uniform)
        bbar, _ = quantize_factor(delta[:, t, :, None] * B[:, t, None, :], rounding.bbar_table, rounding.bbar_uniform)
        h = abar * hq + bbar * u[:, t, :, None]
        hq, _ = round_state(h, t)
        ys.append((C[:, t, None, :] * (hq if rounding.read_quantized else h)).sum(-1))
    return torch.stack(ys, dim=1) if ys else torch.zeros_like(u)


@backends.register("quantized_scan_backward", "naive")
def backward(inputs: ScanInputs, rounding: Rounding, grad_y: Tensor) -> Grads:
    """Returns the gradients of u, delta, A, B, C, straight through the quantizers."""
    u, delta, A, B, C = inputs
    round_state = RoundState(rounding)
    states, trace = [u.new_zeros(u.shape[0], *A.shape)], []
    for t in range(u.shape[1]):
        exact = torch.exp(delta[:, t, :, None] * A)
        abar, slope_abar = quantize_factor(exact, rounding.abar_table, rounding.abar_uniform)
        bbar, slope_bbar = quantize_factor(
            delta[:, t, :, None] * B[:, t, None, :], rounding.bbar_table, rounding.bbar_uniform
        )
        h = abar * states[t] + bbar * u[:, t, :, None]
        hq, slope_h = round_state(h, t)
        trace.append((abar, slope_abar * exact, bbar, slope_bbar, slope_h, hq if rounding.read_quantized else h))
        states.append(hq)

    grad_u, grad_delta, grad_A = torch.zeros_like(u), torch.zeros_like(u), torch.zeros_like(A)
    grad_B, grad_C = torch.zeros_like(B), torch.zeros_like(B)
    carry = torch.zeros_like(states[0])
    for t in reversed(range(u.shape[1])):
        abar, slope_exponent, bbar, slope_bbar, slope_h, read = trace[t]
        grad_read = grad_y[:, t, :, None] * C[:, t, None, :]
        grad_C[:, t] = (grad_y[:, t, :, None] * read).sum(1)
        grad_h = (carry + grad_read) * slope_h if rounding.read_quantized else carry * slope_h + grad_read
        grad_bbar = grad_h * u[:, t, :, None] * slope_bbar
        grad_exponent = grad_h * states[t] * slope_exponent
        grad_u[:, t] = (grad_h * bbar).sum(-1)
        grad_B[:, t] = (grad_bbar * delta[:, t, :, None]).sum(1)
        grad_delta[:, t] = (grad_bbar * B[:, t, None, :] + grad_exponent * A).sum(-1)
        grad_A += (grad_exponent * delta[:, t, :, None]).sum(0)
        carry = grad_h * abar
    return grad_u, grad_delta, grad_A, grad_B, grad_C
