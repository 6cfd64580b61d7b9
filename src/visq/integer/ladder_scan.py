"""Runs the fused scan of a decay ladder: A[c, n] = (n + 1) A[c, 0], so that Abar[c, n] = r^(n + 1).

r is exp(delta A[c, 0]). A step takes one exponential a channel; the powers are products in 16 bits.
docs/integer-semantics.md derives the formats, bounds the powers' error and shows that nothing overflows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visq.integer.arithmetic import LOG2E, Floats, Ints, exp2, mulhrs, to_int16
from visq.integer.fused_scan import fused_recurrence, fused_steps
from visq.integer.scan_steps import ScanCodecs, ScanSteps

#: Powers that are products of the first pair with r^2 and r^4; later ones are those before times r^8.
FIRST = 8


@dataclass(frozen=True)
class LadderScan(ScanSteps):
    """The parameters of the fused recurrence of a decay ladder.

    Attributes:
        rate: [C], A[c, 0] log2(e); r = 2^(delta * rate).
        states: N.
        ratio: [L], the ratio of the state's scales of steps t-1 and t, in Q14 less `lift` bits.
    """

    rate: Floats
    states: int
    ratio: Ints

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rate), self.states


def ladder(length: int, A: Floats, codecs: ScanCodecs) -> LadderScan | str:
    """Returns the ladder form of a scan of `length` steps, or the reason why it runs in float32. A is [C, N].

    delta, B, C and h must have codecs.
    """
    shared = fused_steps(length, codecs)
    if isinstance(shared, str):
        return shared
    ratio, steps = shared
    rate = A[:, 0].astype(np.float32) * LOG2E
    if not (np.isfinite(rate).all() and (rate < 0).all()):
        return "A is not negative or leaves float32"
    return LadderScan(rate=rate, states=A.shape[1], ratio=np.rint(ratio).astype(np.int64), **steps)


def powers(r: Ints, ratio: int, states: int) -> Ints:
    """Returns r^(n + 1) * ratio, n = 0 .. states - 1, in the units of `ratio`. r [C] in Q15 -> [C, states]."""
    square = mulhrs(r, r)
    fourth = mulhrs(square, square)
    eighth = mulhrs(fourth, fourth)
    first = mulhrs(np.stack([r, square], -1), np.int64(ratio))
    second = mulhrs(first, square[:, None])
    group = np.concatenate([first, second], -1)
    group = np.concatenate([group, mulhrs(group, fourth[:, None])], -1)
    found = [group]
    while len(found) * FIRST < states:
        found.append(mulhrs(found[-1], eighth[:, None]))
    return np.concatenate(found, -1)[:, :states]


def ladder_scan(scan: LadderScan, u: Floats, delta: Floats, B: Floats, C: Ints) -> Floats:
    """Runs the scan of one image and returns y [L, C] float32; arguments as in `integer_scan`."""
    r = to_int16(exp2(delta * scan.rate) * np.float32(32768))
    return fused_recurrence(scan, lambda t: powers(r[t], int(scan.ratio[t]), scan.states), u, delta, B, C)
