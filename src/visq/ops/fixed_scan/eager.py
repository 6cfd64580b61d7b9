"""The engine's definitions of the scan in PyTorch, for devices without the engine: all images at once, token by token.

Integers of 64 bits hold every product; docs/integer-semantics.md shows that the engine's 16 and 32 bits do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visq.integer.fixed_scan import DELTA_HIGH, FixedScan
from visq.integer.fixed_scan import INPUT_HIGH as FIXED_INPUT_HIGH
from visq.integer.fused_scan import INPUT_HIGH, KEPT_HIGH, FusedScan
from visq.integer.ladder_scan import FIRST, LadderScan
from visq.integer.scans import IntegerScan
from visq.ops import backends
from visq.ops.exact.eager import clamp, exp2

Coefficients = tuple[Any, Any, Any, Any]


class Inputs:
    """A scan's tensors, and its parameters where they are.

    Attributes:
        u, delta [B, L, d_inner], B [B, L, N] float32; C [B, L, N] int64.
    """

    def __init__(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> None:
        self.u, self.delta, self.B, self.C = u, delta, B, C.long()

    def on(self, values: Any) -> Tensor:
        """Returns a parameter on the device of the inputs."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.u.device)


def to_int16(x: Tensor) -> Tensor:
    """Returns x rounded half to even and saturated, within -32768..32767, int64."""
    return clamp(x.round(), -32768, 32767).long()


def mulhrs(a: Tensor, b: Tensor) -> Tensor:
    return (a * b + (1 << 14)) >> 15


def high_product(a: Tensor, b: Any) -> Tensor:
    return (a * b) >> 16


def exp2_fixed(f: Tensor, coefficients: Coefficients) -> Tensor:
    """Returns 2^-f for f in Q16, as `visq.integer.arithmetic.exp2_fixed` does."""
    c0, c1, c2, c3 = (int(c) for c in coefficients)
    return c0 - high_product(f, c1 - high_product(f, c2 - high_product(f, c3)))


def power(exponent: Tensor, shift: int, coefficients: Coefficients) -> Tensor:
    """Returns 2^-exponent; the exponent has `shift` fraction bits."""
    fraction = exp2_fixed((exponent >> (shift - 16)) & 0xFFFF, coefficients)
    return fraction >> (exponent >> shift).clamp_max(16)


def exponents(scan: FixedScan | FusedScan, x: Inputs) -> Tensor:
    """Returns d [B, L, d_inner], 16 bits unsigned: delta in fixed point."""
    return to_int16(x.delta * x.on(scan.delta_scale)).clamp_min(0)


def rates(scan: LadderScan, x: Inputs) -> Tensor:
    """Returns r = exp(delta A[c, 0]) in Q15 [B, L, d_inner]."""
    return to_int16(exp2(x.delta * x.on(scan.rate)) * 32768.0)


def drives(scan: IntegerScan, x: Inputs) -> tuple[Tensor, Tensor]:
    """Returns beta [B, L, N] and g [B, L, d_inner], which make a step's input; g of the fused forms holds delta."""
    beta = to_int16(x.B * x.on(scan.beta_scale)[:, None])
    stored = isinstance(scan, FixedScan)
    g = to_int16(((x.u if stored else x.delta * x.u) * x.on(scan.input_channel)) * x.on(scan.input_step)[:, None])
    high = FIXED_INPUT_HIGH if stored else INPUT_HIGH
    return beta, g.clamp(-high, high)


def deltas(scan: FixedScan, x: Inputs) -> Tensor:
    """Returns w [B, L, d_inner], the factor of Bbar that belongs to channels."""
    return to_int16(x.delta * x.on(scan.drive_channel)).clamp(0, DELTA_HIGH)


def read_out(scan: IntegerScan, sums: Tensor, x: Inputs) -> Tensor:
    """Returns y [B, L, d_inner] float32 of the sums over states, in codes or in 2^-point codes of the state."""
    channel = scan.y_channel if isinstance(scan, FixedScan) else scan.y_channel * np.float32(2.0**-scan.point)
    return (sums.float() * x.on(channel)) * x.on(scan.y_step)[:, None]


def fixed_scan(scan: FixedScan, x: Inputs) -> Tensor:
    d, w, (beta, g) = exponents(scan, x), deltas(scan, x), drives(scan, x)
    a = x.on(scan.a)
    luts = [None if lut is None else x.on(lut) for lut in (scan.abar_lut, scan.bbar_lut)]
    q, sums = torch.zeros_like(a).expand(len(x.u), *a.shape), torch.empty_like(d)
    for t in range(x.u.shape[1]):
        kept = high_product(abar(scan, d[:, t, :, None] * a, luts[0]), int(scan.decay[t]))
        drive = bbar(scan, mulhrs(w[:, t, :, None], beta[:, t, None]), luts[1])
        total = high_product(q << (scan.point + 1 + int(scan.lift[t])), kept) + mulhrs(drive, g[:, t, :, None])
        q = ((total + (1 << (scan.point - 1))) >> scan.point).clamp(scan.state_low, scan.state_high)
        sums[:, t] = (q * x.C[:, t, None]).sum(-1)
    return read_out(scan, sums, x)


def abar(scan: FixedScan, exponent: Tensor, lut: Tensor | None) -> Tensor:
    """Returns the quantized Abar of a fixed-point exponent: its code in the high bits of 16, or the table's value."""
    value = power(exponent, scan.shift, scan.abar_power)
    if lut is not None:
        return lut[value >> 1]
    code = ((value + (1 << (scan.abar_fraction - 1))) >> scan.abar_fraction).clamp_max(scan.abar_high)
    return code << (16 - scan.abar_bits)


def bbar(scan: FixedScan, value: Tensor, lut: Tensor | None) -> Tensor:
    """Returns the quantized Bbar of `value`: its code in the high bits of 16, or the table's value."""
    if lut is not None:
        return lut[value + 32768]
    fraction = 12 - scan.bbar_bits
    code = (value + (1 << (fraction - 1))) >> fraction
    return code.clamp(scan.bbar_low, scan.bbar_high) << (16 - scan.bbar_bits)


def fused_scan(scan: FusedScan, x: Inputs) -> Tensor:
    d, a = exponents(scan, x), x.on(scan.a)
    return recurrence(scan, lambda t: power(d[:, t, :, None] * a, scan.shift, tuple(scan.power[t])), x)


def ladder_scan(scan: LadderScan, x: Inputs) -> Tensor:
    r = rates(scan, x)
    return recurrence(scan, lambda t: ladder_powers(r[:, t], int(scan.ratio[t]), scan.states), x)


def ladder_powers(r: Tensor, ratio: int, states: int) -> Tensor:
    """Returns r^(n + 1) * ratio [B, d_inner, states], multiplied in the order of `visq.integer.ladder_scan.powers`."""
    square = mulhrs(r, r)
    fourth = mulhrs(square, square)
    eighth = mulhrs(fourth, fourth)
    first = mulhrs(torch.stack([r, square], -1), torch.full_like(r, ratio)[..., None])
    group = torch.cat([first, mulhrs(first, square[..., None])], -1)
    found = [torch.cat([group, mulhrs(group, fourth[..., None])], -1)]
    while len(found) * FIRST < states:
        found.append(mulhrs(found[-1], eighth[..., None]))
    return torch.cat(found, -1)[..., :states]


def recurrence(scan: FusedScan | LadderScan, powers: Callable[[int], Tensor], x: Inputs) -> Tensor:
    """Runs the fused recurrence, given Abar times the ratio of scales in each step."""
    beta, g = drives(scan, x)
    q, sums = g.new_zeros(len(g), *scan.shape), torch.empty_like(g)
    for t in range(x.u.shape[1]):
        kept = high_product(q << (scan.point + 2), powers(t)) << int(scan.lift[t])
        total = kept.clamp(-KEPT_HIGH, KEPT_HIGH) + mulhrs(beta[:, t, None], g[:, t, :, None])
        q = ((total + (1 << (scan.point - 1))) >> scan.point).clamp(scan.state_low, scan.state_high)
        sums[:, t] = (total * x.C[:, t, None]).sum(-1)
    return read_out(scan, sums, x)


FORMS: dict[type, Callable[[Any, Inputs], Tensor]] = {
    FixedScan: fixed_scan,
    FusedScan: fused_scan,
    LadderScan: ladder_scan,
}


@backends.register("fixed_scan", "torch", devices=("cuda",))
def forward(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, scan: IntegerScan) -> Tensor:
    """Returns y [B, L, d_inner]; arguments as in `visq.ops.fixed_scan`."""
    return FORMS[type(scan)](scan, Inputs(u, delta, B, C))
