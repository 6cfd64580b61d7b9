"""The selective scan in C++: the kernels of the quantized scan, with nothing quantized."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.native.extension import _C
from visq.ops import _native
from visq.ops._scan import Grads, NativeScan, ScanInputs, addresses, like_inputs


@_native.register_cpp("selective_scan")
def forward(inputs: ScanInputs) -> Tensor:
    """Returns y [B, L, d_inner]."""
    scan = NativeScan(inputs)
    y = torch.empty(inputs.u.shape, dtype=torch.float32)
    _C.scan_forward(*scan.arguments, y.data_ptr(), _native.threads())
    return y


@_native.register_cpp("selective_scan_backward")
def backward(inputs: ScanInputs, grad_y: Tensor) -> Grads:
    """Returns the gradients of u, delta, A, B, C. States are recomputed; with long sequences, chunk by chunk."""
    scan, grads = NativeScan(inputs), like_inputs(inputs)
    _C.scan_backward(*scan.arguments, scan.rows(grad_y), *addresses(grads), _native.threads())
    return grads
