"""Runs the selective scan in float32, for recipes that leave part of it without codes or have no fixed-point form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visq.integer.arithmetic import LOG2E, Floats, clamp, exp2, nearest
from visq.integer.codecs import FactorCodec, StateCodec


@dataclass(frozen=True)
class FloatScan:
    """The parameters of the float32 recurrence, its codecs, and the reason why it is not in fixed point.

    Attributes:
        A: [C, N], negative.
        abar, bbar, h: codecs of Abar, Bbar and the state; None leaves the tensor unrounded.
        reason: why the scan runs in float32, shown to users.
    """

    A: Floats
    abar: FactorCodec | None
    bbar: FactorCodec | None
    h: StateCodec | None
    reason: str


def float_scan(scan: FloatScan, u: Floats, delta: Floats, B: Floats, C: Floats) -> Floats:
    """Runs the recurrence of one image, u, delta [L, C] and B, C [L, N] float32 in scan order; returns y [L, C]."""
    A, h = scan.A * LOG2E, scan.h
    state = np.zeros_like(A)
    y = np.empty(u.shape, np.float32)
    scale = None if h is None else h.channel[:, None] * h.state
    steps = None if h is None else np.broadcast_to(h.step, len(u))
    w = delta
    if scan.bbar is not None:
        w, u = delta * (np.float32(1) / scan.bbar.channel), u * scan.bbar.channel
    for t in range(len(u)):
        decay = _rounded(exp2(delta[t, :, None] * A), scan.abar)
        drive = _rounded(w[t, :, None] * B[t], scan.bbar)
        state = decay * state + drive * u[t, :, None]
        exact = state
        if h is not None and scale is not None and steps is not None:
            at = steps[t] * scale
            state = clamp(np.rint(state * (np.float32(1) / at)), h.low, h.high) * at
        read = exact if h is not None and not h.read_quantized else state
        total = np.zeros(len(A), np.float32)
        for n in range(A.shape[1]):
            total = total + C[t, n] * read[:, n]
        y[t] = total
    return y


def _rounded(x: Floats, codec: FactorCodec | None) -> Floats:
    if codec is None:
        return x
    if codec.table is not None:
        return codec.table[nearest(codec.table, x)]
    code = np.rint(x * (np.float32(1) / codec.step))
    return clamp(code, codec.low, codec.high) * codec.step
