"""The hidden states of a selective scan, for calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.ops import backends
from visq.ops._checks import check_scan, float_under_autocast
from visq.ops.scan_states import cpp, naive, triton  # noqa: F401  (they register themselves)


def scan_states(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Returns every hidden state of `selective_scan(u, delta, A, B, C)`. Forward only.

    Arguments:
        u, delta: float32 [B, L, d_inner].
        A: float32 [d_inner, N].
        B: float32 [B, L, N].

    Returns:
        h, float32 [B, L, d_inner, N]: N times the size of u, so feed it a few images at a time.

    Raises:
        VisqError: on a wrong shape or dtype. Under autocast the arguments are cast to float32 instead.
    """
    u, delta, A, B = float_under_autocast(u, delta, A, B)
    return _forward(u, delta, A, B)


@torch.library.custom_op("visq::scan_states", mutates_args=())
def _forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
    check_scan("scan_states", u, delta, A, B, B)
    return backends.call("scan_states", u.device.type, u, delta, A, B)


@_forward.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
    check_scan("scan_states", u, delta, A, B, B)
    return u.new_empty(*u.shape, A.shape[1])
