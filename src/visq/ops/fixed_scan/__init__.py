"""The selective scan in fixed point, with the bits of the integer engine."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.integer.scans import IntegerScan
from visq.ops import backends
from visq.ops._checks import require_shape
from visq.ops.fixed_scan import cpp, eager, naive, triton  # noqa: F401  (they register themselves)


def fixed_scan(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, scan: IntegerScan) -> Tensor:
    """Runs h_t = Abar_t h_{t-1} + Bbar_t u_t, y_t = C_t h_t in 16-bit fixed point.

    Abar, Bbar and h have codes; in the fused form only h has.

    docs/integer-semantics.md defines it, bit for bit; there is no gradient (`quantized_scan` has one).

    Arguments:
        u, delta: [B, L, d_inner] float32, as their codes decode; B: [B, L, N] float32.
        C: [B, L, N] integers of any dtype: codes less their zero point, within -255..255.
        scan: its parameters, for this length.
    Returns:
        y, float32 [B, L, d_inner]; the same bits for any number of threads and instruction set.
    Raises:
        VisqError: shapes that do not belong to each other or to `scan`.
    """
    channels, states = scan.shape
    batch, length = u.shape[0], len(scan.input_step)
    require_shape("fixed_scan", "u", u, (batch, length, channels), "[B, L, d_inner]")
    require_shape("fixed_scan", "delta", delta, (batch, length, channels), "[B, L, d_inner]")
    require_shape("fixed_scan", "B", B, (batch, length, states), "[B, L, N]")
    require_shape("fixed_scan", "C", C.float(), (batch, length, states), "[B, L, N]")
    with torch.no_grad():
        y: Tensor = backends.call("fixed_scan", u.device.type, u, delta, B, C, scan)
        return y
