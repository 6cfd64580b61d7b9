"""The fixed-point scan in C++: the engine's own kernel on tensors of torch."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from visq.integer.scans import IntegerScan
from visq.native import single_op
from visq.native.single_op import SingleOp
from visq.ops import _native, backends

#: Packed kernels by the identity of their parameters, dropped with them.
_KERNELS: dict[tuple[int, str], SingleOp] = {}


def kernel_of(scan: IntegerScan) -> SingleOp:
    key = (id(scan), _native.isa())
    if key not in _KERNELS:
        _KERNELS[key] = single_op.fixed_scan(_native.isa(), scan)
        weakref.finalize(scan, _KERNELS.pop, key, None)
    return _KERNELS[key]


@_native.register_cpp("fixed_scan")
def forward(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, scan: IntegerScan) -> Tensor:
    """Returns y [B, L, d_inner]; arguments as in `visq.ops.fixed_scan`."""
    codes = C.to(torch.int32) + torch.from_numpy(scan.C_zero.astype("int32"))[:, None]
    if ((codes < 0) | (codes > 255)).any():  # no codes of the quantizer the plan was made for
        return backends.implementation("fixed_scan", "naive")(u, delta, B, C, scan)
    codes = codes.to(torch.uint8).contiguous()
    u, delta, B = u.contiguous(), delta.contiguous(), B.contiguous()
    y = torch.empty_like(u)
    addresses = [x.data_ptr() for x in (u, delta, B, codes)]
    kernel_of(scan).run(addresses, len(u), y.data_ptr(), _native.threads())
    return y
