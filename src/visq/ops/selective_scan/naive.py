"""The selective scan as a plain loop over tokens: the oracle of the fast kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import backends
from visq.ops._scan import Grads, ScanInputs


@backends.register("selective_scan", "naive")
def forward(inputs: ScanInputs) -> Tensor:
    """Returns y [B, L, d_inner]."""
    u, delta, A, B, C = inputs
    h = u.new_zeros(u.shape[0], *A.shape)
    ys = []
    for t in range(u.shape[1]):
        abar = torch.exp(delta[:, t, :, None] * A)
        h = abar * h + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1))
    return torch.stack(ys, dim=1) if ys else torch.zeros_like(u)


@backends.register("selective_scan_backward", "naive")
def backward(inputs: ScanInputs, grad_y: Tensor) -> Grads:
    """Returns the gradients of u, delta, A, B, C: the recurrence runs backwards over the stored states."""
    u, delta, A, B, C = inputs
    abars, states = [], [u.new_zeros(u.shape[0], *A.shape)]
    for t in range(u.shape[1]):
        abars.append(torch.exp(delta[:, t, :, None] * A))
        states.append(abars[t] * states[t] + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :])

    grad_u, grad_delta, grad_A = torch.zeros_like(u), torch.zeros_like(u), torch.zeros_like(A)
    grad_B, grad_C = torch.zeros_like(B), torch.zeros_like(B)
    carry = torch.zeros_like(states[0])
    for t in reversed(range(u.shape[1])):
        grad_h = carry + grad_y[:, t, :, None] * C[:, t, None, :]
        grad_C[:, t] = (grad_y[:, t, :, None] * states[t + 1]).sum(1)
        grad_B[:, t] = (grad_h * (delta[:, t] * u[:, t])[:, :, None]).sum(1)
        grad_du = (grad_h * B[:, t, None, :]).sum(-1)
        grad_exponent = grad_h * states[t] * abars[t]
        grad_u[:, t] = grad_du * delta[:, t]
        grad_delta[:, t] = grad_du * u[:, t] + (grad_exponent * A).sum(-1)
        grad_A += (grad_exponent * delta[:, t, :, None]).sum(0)
        carry = grad_h * abars[t]
    return grad_u, grad_delta, grad_A, grad_B, grad_C
