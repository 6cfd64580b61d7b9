"""The fixed-point scan in C++: the engine's own kernel (csrc/engine/fixed_scan.h) on tensors of torch."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from visq.ops import _native, backends
from visq.runtime.cpu import ScanKernel
from visq.runtime.scan import FixedScan

#: Packed kernels by the identity of their parameters, dropped with them.
_KERNELS: dict[tuple[int, str], ScanKernel] = {}

#: Added to C's integers to make them bytes.
_OFFSET = 128


def kernel_of(scan: FixedScan, wide: bool) -> ScanKernel:
    key = (id(scan), f"{_native.isa()} {wide}")
    if key not in _KERNELS:
        _KERNELS[key] = ScanKernel(scan, 0 if wide else _OFFSET, _native.isa())
        weakref.finalize(scan, _KERNELS.pop, key, None)
    return _KERNELS[key]


@backends.register("fixed_scan", "cpp")
def forward(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, scan: FixedScan) -> Tensor:
    """y [B, L, d_inner]; arguments as in `visq.ops.fixed_scan`."""
    # Codes of a signed quantizer lie in -128..127, those of an unsigned one less a zero point in -255..255.
    low = int(C.min()) if C.numel() else 0
    wide = low >= 0
    if not wide and (low < -_OFFSET or int(C.max()) > 255 - _OFFSET):
        return backends.implementation("fixed_scan", "naive")(u, delta, B, C, scan)
    codes = (C.to(torch.int16) + (0 if wide else _OFFSET)).to(torch.uint8).contiguous()
    u, delta, B = u.contiguous(), delta.contiguous(), B.contiguous()
    y = torch.empty_like(u)
    kernel = kernel_of(scan, wide)
    kernel.run(u.data_ptr(), delta.data_ptr(), B.data_ptr(), codes.data_ptr(), len(u), y.data_ptr(), _native.threads())
    return y
