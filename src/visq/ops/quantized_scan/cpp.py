"""The quantized scan in C++ (csrc/scan.h, csrc/scan_backward.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visq.native.extension import _C
from visq.ops import _native
from visq.ops.quantized_scan.params import midpoints

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
_KINDS = {"none": 0, "uniform": 1, "table": 2}


class NativeQuant:
    """The quantizers as the extension takes them; keeps the tensors behind the addresses alive."""

    def __init__(
        self,
        step: Tensor | None,
        channel: Tensor | None,
        state: Tensor | None,
        state_range: Sequence[int],
        read_quantized: bool,
        abar_table: Tensor | None,
        abar_uniform: Sequence[float],
        bbar_table: Tensor | None,
        bbar_uniform: Sequence[float],
    ) -> None:
        self._alive: list[Tensor] = []
        low, high = state_range
        self.argument = (
            (
                self._address(step),
                self._address(channel),
                self._address(state),
                float(low),
                float(high),
                read_quantized,
            ),
            self._factor(abar_table, abar_uniform),
            self._factor(bbar_table, bbar_uniform),
        )

    def _address(self, x: Tensor | None) -> int:
        if x is None:
            return 0
        self._alive.append(x.contiguous())
        return self._alive[-1].data_ptr()

    def _factor(self, table: Tensor | None, uniform: Sequence[float]) -> tuple[int, float, float, float, int, int, int]:
        if table is not None:
            addresses = self._address(table), self._address(midpoints(table))
            return (_KINDS["table"], 1.0, 0.0, 0.0, *addresses, table.shape[0] - 1)
        if uniform:
            scale, low, high = uniform
            return (_KINDS["uniform"], scale, low, high, 0, 0, 0)
        return (_KINDS["none"], 1.0, 0.0, 0.0, 0, 0, 0)


@_native.register_cpp("quantized_scan")
def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    step: Tensor | None,
    channel: Tensor | None,
    state: Tensor | None,
    state_range: Sequence[int],
    read_quantized: bool,
    abar_table: Tensor | None,
    abar_uniform: Sequence[float],
    bbar_table: Tensor | None,
    bbar_uniform: Sequence[float],
) -> Tensor:
    """y [B, L, d_inner]; arguments as in `visq.ops.quantized_scan`, flattened."""
    quant = NativeQuant(
        step, channel, state, state_range, read_quantized, abar_table, abar_uniform, bbar_table, bbar_uniform
    )
    (u_rows, u), (delta_rows, delta) = _native.native_rows(u), _native.native_rows(delta)
    (B_rows, B), (C_rows, C) = _native.native_rows(B), _native.native_rows(C)
    A = A.contiguous()
    y = torch.empty(u.shape, dtype=torch.float32)
    _C.scan_forward(
        (*u.shape, A.shape[1]),
        u_rows,
        delta_rows,
        A.data_ptr(),
        B_rows,
        C_rows,
        quant.argument,
        y.data_ptr(),
        _native.threads(),
    )
    return y


@_native.register_cpp("quantized_scan_backward")
def backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    step: Tensor | None,
    channel: Tensor | None,
    state: Tensor | None,
    state_range: Sequence[int],
    read_quantized: bool,
    abar_table: Tensor | None,
    abar_uniform: Sequence[float],
    bbar_table: Tensor | None,
    bbar_uniform: Sequence[float],
    grad_y: Tensor,
) -> Grads:
    """Gradients of u, delta, A, B, C, straight through the quantizers; states are recomputed."""
    quant = NativeQuant(
        step, channel, state, state_range, read_quantized, abar_table, abar_uniform, bbar_table, bbar_uniform
    )
    (u_rows, u), (delta_rows, delta) = _native.native_rows(u), _native.native_rows(delta)
    (B_rows, B), (C_rows, C) = _native.native_rows(B), _native.native_rows(C)
    grad_rows, grad_y = _native.native_rows(grad_y)
    A = A.contiguous()
    grads = tuple(torch.empty(x.shape, dtype=torch.float32) for x in (u, delta, A, B, C))
    grad_u, grad_delta, grad_A, grad_B, grad_C = grads
    _C.scan_backward(
        (*u.shape, A.shape[1]),
        u_rows,
        delta_rows,
        A.data_ptr(),
        B_rows,
        C_rows,
        quant.argument,
        grad_rows,
        grad_u.data_ptr(),
        grad_delta.data_ptr(),
        grad_A.data_ptr(),
        grad_B.data_ptr(),
        grad_C.data_ptr(),
        _native.threads(),
    )
    return grad_u, grad_delta, grad_A, grad_B, grad_C
