"""The quantized scan in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.native.extension import _C
from visq.ops import _native
from visq.ops._scan import Grads, NativeScan, Rounding, ScanInputs, addresses, like_inputs


@_native.register_cpp("quantized_scan")
def forward(inputs: ScanInputs, rounding: Rounding) -> Tensor:
    """Returns y [B, L, d_inner]."""
    scan = NativeScan(inputs, rounding)
    y = torch.empty(inputs.u.shape, dtype=torch.float32)
    _C.scan_forward(*scan.arguments, y.data_ptr(), _native.threads())
    return y


@_native.register_cpp("quantized_scan_backward")
def backward(inputs: ScanInputs, rounding: Rounding, grad_y: Tensor) -> Grads:
    """Returns the gradients of u, delta, A, B, C, straight through the quantizers; states are recomputed."""
    scan, grads = NativeScan(inputs, rounding), like_inputs(inputs)
    _C.scan_backward(*scan.arguments, scan.rows(grad_y), *addresses(grads), _native.threads())
    return grads
