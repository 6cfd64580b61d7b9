"""Which of its three forms a scan takes: fixed point with codes of Abar and Bbar, fused, or float32."""

from __future__ import annotations

from visq.integer.arithmetic import Floats, Ints
from visq.integer.fixed_scan import FixedScan, fixed_scan, plan
from visq.integer.fused_scan import FusedScan, fuse, fused_scan
from visq.integer.scan_steps import ScanCodecs

#: A scan without float32.
IntegerScan = FixedScan | FusedScan


def integer_form(length: int, A: Floats, codecs: ScanCodecs) -> IntegerScan | str:
    """Returns the form without float32 of a scan of `length` steps, or why it has none. A [C, N].

    The scan runs fused where delta, B, C and h have codes and Abar and Bbar have none.
    """
    stored = (codecs.delta, codecs.B, codecs.C, codecs.h)
    if codecs.abar is None and codecs.bbar is None and all(codec is not None for codec in stored):
        return fuse(length, A, codecs)
    return plan(length, A, codecs)


def integer_scan(scan: IntegerScan, u: Floats, delta: Floats, B: Floats, C: Ints) -> Floats:
    """Runs the recurrence of one image in scan order and returns y [L, C] float32.

    Arguments:
        u, delta: [L, C] float32, as their codes decode; B: [L, N] float32 likewise.
        C: [L, N] integers, codes less their zero point.
    """
    return fixed_scan(scan, u, delta, B, C) if isinstance(scan, FixedScan) else fused_scan(scan, u, delta, B, C)
