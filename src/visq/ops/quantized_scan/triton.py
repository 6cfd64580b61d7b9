"""The quantized scan in Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visq.ops import _triton
from visq.ops._scan import Grads, Rounding, ScanInputs, midpoints
from visq.ops._triton import AHEAD, BLOCK


class Roundings:
    """A scan's roundings as the kernels take them.

    Attributes:
        tensors: step, channel, state; scales and table of Abar and of Bbar. What is absent is a tensor nobody reads.
        codes: lowest and highest code of the state.
        options: the kernels' compile-time arguments.
    """

    def __init__(self, rounding: Rounding, inputs: ScanInputs) -> None:
        nothing = inputs.A.new_ones(1)
        state = (rounding.step, rounding.channel, rounding.state)
        abar, abar_options = _factor(rounding.abar_table, rounding.abar_uniform, nothing)
        bbar, bbar_options = _factor(rounding.bbar_table, rounding.bbar_uniform, nothing)
        self.tensors = (*(nothing if x is None else x.contiguous() for x in state), *abar, *bbar)
        self.codes = tuple(float(code) for code in rounding.state_range)
        self.options: dict[str, Any] = {
            **dict(zip(("ABAR", "KA", "BITS_A"), abar_options, strict=True)),
            **dict(zip(("BBAR", "KB", "BITS_B"), bbar_options, strict=True)),
            "STATE": rounding.step is not None,
            "READ": rounding.read_quantized,
        }


@_triton.register_triton("quantized_scan")
def forward(inputs: ScanInputs, rounding: Rounding) -> Tensor:
    """Returns y [B, L, d_inner]."""
    y = torch.empty(inputs.u.shape, dtype=torch.float32, device=inputs.u.device)
    _run_forward(inputs, Roundings(rounding, inputs), y, save=False)
    return y


@_triton.register_triton("quantized_scan_backward")
def backward(inputs: ScanInputs, rounding: Rounding, grad_y: Tensor) -> Grads:
    """Returns the gradients of u, delta, A, B, C, straight through the quantizers."""
    u, delta, A, B, C = inputs = _triton.adjacent(inputs)
    batch, length, channels = u.shape
    states, blocks = A.shape[1], -(-channels // BLOCK)
    saved = u.new_empty((batch, -(-length // AHEAD), channels, states))
    grad_A = u.new_zeros((batch, channels, states))
    grad_B, grad_C = (u.new_empty((blocks, batch, length, states)) for _ in range(2))
    grad_u, grad_delta = (torch.empty(u.shape, dtype=u.dtype, device=u.device) for _ in range(2))
    if u.numel():
        from visq.ops.quantized_scan import triton_kernels

        roundings = Roundings(rounding, inputs)
        _run_forward(inputs, roundings, saved, save=True)
        grad_y = _triton.contiguous_channels(grad_y)
        triton_kernels.backward[batch, blocks](
            *inputs, *roundings.tensors, grad_y, saved, grad_u, grad_delta, grad_A, grad_B, grad_C,
            *(s for x in (u, delta, B, C, grad_y) for s in x.stride()[:2]), channels, *roundings.codes,
            **roundings.options, **_sizes(inputs), num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return grad_u, grad_delta, grad_A.sum(0), grad_B.sum(0), grad_C.sum(0)


def _run_forward(inputs: ScanInputs, roundings: Roundings, out: Tensor, save: bool) -> None:
    """Writes y, or the states that the backward pass starts from."""
    u, delta, _, B, C = inputs = _triton.adjacent(inputs)
    batch, _, channels = u.shape
    if not u.numel():
        return
    from visq.ops.quantized_scan import triton_kernels

    triton_kernels.forward[batch, -(-channels // BLOCK)](
        *inputs, *roundings.tensors, out, out, *(s for x in (u, delta, B, C) for s in x.stride()[:2]), channels,
        *roundings.codes, **roundings.options, **_sizes(inputs), SAVE=save, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def _sizes(inputs: ScanInputs) -> dict[str, int]:
    length, states = inputs.u.shape[1], inputs.A.shape[1]
    return {"L": length, "N": states, "WIDTH": _triton.power_of_two(states), "BLOCK": BLOCK, "AHEAD": AHEAD}


def _factor(
    table: Tensor | None, uniform: Sequence[float], nothing: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[int, int, int]]:
    """Returns (scales, table) and (KIND, K, BITS) of a factor, as `triton_kernels.quantize` takes them."""
    if table is not None:
        size = len(table)
        return (nothing, torch.cat([table, midpoints(table)])), (2, size, max(size - 1, 0).bit_length())
    if uniform:
        scale, low, high = uniform
        scales = nothing.new_tensor([scale, 1.0, low, high])
        scales[1] /= scales[0]
        return (scales, nothing), (1, 1, 0)
    return (nothing, nothing), (0, 1, 0)
