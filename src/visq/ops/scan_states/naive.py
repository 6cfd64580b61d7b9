"""The hidden state of every step, as a plain loop: the oracle of the fast kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import backends


@backends.register("scan_states", "naive")
def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Returns h [B, L, d_inner, N]; arguments as in `visq.ops.scan_states`."""
    states = u.new_zeros(*u.shape, A.shape[1])
    h = u.new_zeros(u.shape[0], *A.shape)
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        states[:, t] = h
    return states
