"""The scan in fixed point in Triton: one kernel of integers, between float32 in PyTorch with the engine's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from visq.integer.arithmetic import Ints
from visq.integer.fixed_scan import FixedScan
from visq.integer.fused_scan import KEPT_HIGH, FusedScan
from visq.integer.scans import IntegerScan
from visq.ops import _triton
from visq.ops._triton import BLOCK
from visq.ops.fixed_scan import eager
from visq.ops.fixed_scan.eager import Inputs

#: States of a channel: sums over more could leave 32 bits.
MOST_STATES = 256


def usable(*args: Any) -> tuple[bool, str]:
    """Returns (ok, reason), see `visq.ops._triton.usable`."""
    if args and args[-1].shape[1] > MOST_STATES:
        return False, f"takes at most {MOST_STATES} states"
    return _triton.usable(*args[:-1])


@_triton.register_triton("fixed_scan", usable)
def forward(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, scan: IntegerScan) -> Tensor:
    """Returns y [B, L, d_inner]; arguments as in `visq.ops.fixed_scan`."""
    x = Inputs(u, delta, B, C)
    beta, g = eager.drives(scan, x)
    options: dict[str, Any] = {"SHIFT": 16, "KEPT": KEPT_HIGH, "TABLE_A": False, "TABLE_B": False}
    options |= dict.fromkeys(("ABAR_FRACTION", "ABAR_HIGH", "ABAR_BITS", "BBAR_LOW", "BBAR_HIGH", "BBAR_BITS"), 0)
    nothing = torch.zeros(4, dtype=torch.int32, device=u.device)
    w = a = coefficients = abar_table = bbar_table = nothing
    step: Ints = np.zeros(u.shape[1], np.int64)
    if isinstance(scan, FixedScan | FusedScan):
        d, a, options["SHIFT"] = eager.exponents(scan, x), narrow(x.on(scan.a)), scan.shift
    if isinstance(scan, FixedScan):
        form, step, w = "fixed", scan.decay, narrow(eager.deltas(scan, x))
        coefficients = narrow(x.on(np.array(scan.abar_power)))
        abar_table = nothing if scan.abar_lut is None else narrow(x.on(scan.abar_lut))
        bbar_table = nothing if scan.bbar_lut is None else narrow(x.on(scan.bbar_lut))
        options |= {
            "TABLE_A": scan.abar_lut is not None,
            "TABLE_B": scan.bbar_lut is not None,
            "ABAR_FRACTION": scan.abar_fraction,
            "ABAR_HIGH": scan.abar_high,
            "ABAR_BITS": scan.abar_bits,
            "BBAR_LOW": scan.bbar_low,
            "BBAR_HIGH": scan.bbar_high,
            "BBAR_BITS": scan.bbar_bits,
        }
    elif isinstance(scan, FusedScan):
        form, coefficients = "fused", narrow(x.on(scan.power))
    else:
        form, d, step = "ladder", eager.rates(scan, x), scan.ratio
    sums = torch.empty(u.shape, dtype=torch.int32, device=u.device)
    if u.numel():
        from visq.ops.fixed_scan import triton_kernels

        (batch, length, channels), states = u.shape, scan.shape[1]
        triton_kernels.recurrence[batch, -(-channels // BLOCK)](
            narrow(d), w, narrow(beta), narrow(g), narrow(x.C), a, coefficients, narrow(x.on(step)),
            narrow(x.on(scan.lift)), abar_table, bbar_table, sums, channels, FORM=form, POINT=scan.point,
            LOW=scan.state_low, HIGH=scan.state_high, **options, L=length, N=states,
            WIDTH=_triton.power_of_two(states), BLOCK=BLOCK, num_warps=1,
            enable_fp_fusion=False,
        )  # fmt: skip
    return eager.read_out(scan, sums, x)


def narrow(x: Tensor) -> Tensor:
    """Returns whole numbers as the kernel takes them."""
    return x.to(torch.int32).contiguous()
