"""The factors r_C x r_L x r_D of a scan's hidden state, and slices of a batch whose states fit into memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """r_C [C], r_L [L] in scan order (or [1]), r_D [N]; all positive. A constant moved between them changes nothing."""

    channel: Tensor
    step: Tensor
    state: Tensor


def chunks(u: Tensor, delta: Tensor, B: Tensor, states: int, limit: int = 2**24) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Slices of a batch whose hidden states [b, L, C, N] hold at most `limit` numbers (or one image)."""
    per_image = u.shape[1] * u.shape[2] * states
    size = max(1, limit // per_image)
    return [(u[i : i + size], delta[i : i + size], B[i : i + size]) for i in range(0, u.shape[0], size)]
