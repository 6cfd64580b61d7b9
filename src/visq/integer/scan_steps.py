"""Computes the parameters that both fixed-point forms of the selective scan share, from the scan's codecs.

docs/integer-semantics.md derives the formats and shows that nothing overflows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visq.integer.arithmetic import LOG2E, Floats, Ints
from visq.integer.codecs import Codec, FactorCodec, StateCodec

#: The state's scale may shrink up to 2^SHRINK times from one step to the next.
SHRINK = 3


@dataclass(frozen=True)
class ScanCodecs:
    """The codecs of a scan's tensors; None where a tensor has no codes.

    delta, B and C are activations. Abar, Bbar and the state h exist only inside the recurrence.

    Attributes:
        ladder: whether A is stored as a decay ladder, A[c, n] = (n + 1) A[c, 0].
    """

    delta: Codec | None
    B: Codec | None
    C: Codec | None
    abar: FactorCodec | None
    bbar: FactorCodec | None
    h: StateCodec | None
    ladder: bool = False


@dataclass(frozen=True)
class ScanSteps:
    """The parameters that the forms of the fixed-point recurrence share.

    Attributes:
        lift: [L], bits by which the kept state is shifted left where its scale shrinks from one step to the next.
        beta_scale: [L]; beta = int16(B * beta_scale).
        input_channel, input_step: [C] and [L], factors of the input in fixed point, g.
        C_zero: [L]; C's integers plus C_zero are its bytes.
        state_low, state_high: range of the state's codes.
        point: fraction bits of a step's sum, which is in codes of the state.
        y_channel, y_step: [C] and [L]; y = sum * y_channel * y_step, the sum in codes of the state.
    """

    lift: Ints
    beta_scale: Floats
    input_channel: Floats
    input_step: Floats
    C_zero: Ints
    state_low: int
    state_high: int
    point: int
    y_channel: Floats
    y_step: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of channels and states."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExponentSteps(ScanSteps):
    """The parameters of a recurrence that computes 2^-(d a) for each state.

    Attributes:
        delta_scale: [C]; d = int16(delta * delta_scale), 0 where delta is negative.
        a: [C, N], -A log2(e) / delta_scale in fixed point, 16 bits unsigned.
        shift: fraction bits of the exponent d a.
    """

    delta_scale: Floats
    a: Ints
    shift: int

    @property
    def shape(self) -> tuple[int, int]:
        channels, states = self.a.shape
        return channels, states


def step_ratios(h: StateCodec, length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the state's scale of each step, and the previous step's scale divided by it, both [length] float64."""
    step = np.broadcast_to(h.step, length).astype(np.float64)
    return step, np.concatenate([[1.0], step[:-1] / step[1:]])


def token_step(x: Codec) -> Floats:
    """Returns the scale of each row [rows], or the only scale [1]."""
    return x.step_channel if x.step_token is None else x.step_token * x.step_channel


def read_out(C: Codec, h: StateCodec, length: int) -> dict[str, Any]:
    """Returns the parameters of `ScanSteps` that follow from the codecs of C and of the state."""
    step = np.broadcast_to(h.step, length).astype(np.float32)
    return {
        "C_zero": np.broadcast_to(C.zero.astype(np.int64) + C.offset, length),
        "state_low": h.low,
        "state_high": h.high,
        "y_channel": h.channel,
        "y_step": (step * token_step(C)).astype(np.float32),
    }


def exponent(A: Floats, delta: Codec) -> tuple[Floats, Ints, int] | None:
    """Returns delta_scale, a and shift of the exponent -delta A log2(e).

    Returns None where delta is never positive, A [C, N] is not negative, or their product spans too wide a range.
    """
    largest = np.broadcast_to(delta.largest(), len(A)).astype(np.float64)
    rate = -A.astype(np.float64) * float(LOG2E)
    if not ((largest > 0).all() and (rate > 0).all() and np.isfinite(rate).all()):
        return None
    if delta.step_token is None and delta.table is None:
        # d is delta's code exactly, times 2^spare where `a` would not fit into 16 bits otherwise.
        # The high half of d a is then the exponent's whole part, and the low half its fraction.
        step = np.broadcast_to(delta.step_channel, len(A)).astype(np.float64)
        spare = np.clip(np.ceil(np.log2(rate.max(1) * step * 65536 / 65535)), 0, None)
        if (largest / step * 2**spare <= 32767).all():
            a = np.rint(rate * (step * 2.0 ** (16 - spare))[:, None])
            return (2**spare / step).astype(np.float32), a.astype(np.int64), 16
    delta_bits = min(math.floor(math.log2(32767 / largest.max())), 30)
    a_bits = min(math.floor(math.log2(65535 / rate.max())), 31 - delta_bits)
    if delta_bits + a_bits < 17:
        return None
    scale = np.full(len(A), 2.0**delta_bits, np.float32)
    return scale, np.rint(rate * 2.0**a_bits).astype(np.int64), delta_bits + a_bits
