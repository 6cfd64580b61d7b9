"""The selective scan in C++ (csrc/scan.h, csrc/scan_backward.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.native.extension import _C
from visq.ops import _native

# Nothing quantized: the kernels are shared with the quantized scan.
_PLAIN_STATE = (0, 0, 0, 0.0, 0.0, False)
_PLAIN_FACTOR = (0, 1.0, 0.0, 0.0, 0, 0, 0)
PLAIN = (_PLAIN_STATE, _PLAIN_FACTOR, _PLAIN_FACTOR)


@_native.register_cpp("selective_scan")
def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y [B, L, d_inner]; arguments as in `visq.ops.selective_scan`."""
    (u_rows, u), (delta_rows, delta) = _native.native_rows(u), _native.native_rows(delta)
    (B_rows, B), (C_rows, C) = _native.native_rows(B), _native.native_rows(C)
    A = A.contiguous()
    y = torch.empty(u.shape, dtype=torch.float32)
    sizes = (*u.shape, A.shape[1])
    _C.scan_forward(sizes, u_rows, delta_rows, A.data_ptr(), B_rows, C_rows, PLAIN, y.data_ptr(), _native.threads())
    return y


@_native.register_cpp("selective_scan_backward")
def backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, grad_y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C. States are recomputed; with long sequences, chunk by chunk."""
    (u_rows, u), (delta_rows, delta) = _native.native_rows(u), _native.native_rows(delta)
    (B_rows, B), (C_rows, C) = _native.native_rows(B), _native.native_rows(C)
    grad_rows, grad_y = _native.native_rows(grad_y)
    A = A.contiguous()
    grads = tuple(torch.empty(x.shape, dtype=torch.float32) for x in (u, delta, A, B, C))
    grad_u, grad_delta, grad_A, grad_B, grad_C = grads
    sizes = (*u.shape, A.shape[1])
    _C.scan_backward(
        sizes,
        u_rows,
        delta_rows,
        A.data_ptr(),
        B_rows,
        C_rows,
        PLAIN,
        grad_rows,
        grad_u.data_ptr(),
        grad_delta.data_ptr(),
        grad_A.data_ptr(),
        grad_B.data_ptr(),
        grad_C.data_ptr(),
        _native.threads(),
    )
    return grad_u, grad_delta, grad_A, grad_B, grad_C
