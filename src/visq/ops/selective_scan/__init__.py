"""Selective scan of Mamba (arXiv 2312.00752, eq. 2 with Bbar = delta B, as in the Vim code)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visq.ops import backends
from visq.ops._checks import check_scan, float_under_autocast
from visq.ops._scan import Grads, ScanInputs, like_inputs
from visq.ops.selective_scan import cpp, naive, triton  # noqa: F401  (they register themselves)


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Runs the selective state-space recurrence over the tokens.

        h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t,    y_t = sum_n C_t[n] h_t[:, n],    h_{-1} = 0

    There is no D-skip, no softplus and no gate inside. Differentiable in all five arguments (states are recomputed).

    Arguments:
        u: input, float32 [B, L, d_inner].
        delta: step sizes after softplus, float32 [B, L, d_inner].
        A: state matrix (negative), float32 [d_inner, N].
        B, C: input and output projections, float32 [B, L, N]; like u and delta they may be row-strided slices.

    Returns:
        y, float32 [B, L, d_inner]. NaN in gives NaN out. Bit-identical for any number of threads.

    Raises:
        VisqError: on a wrong shape or dtype. Under autocast the arguments are cast to float32 instead.
    """
    u, delta, A, B, C = float_under_autocast(u, delta, A, B, C)
    return _forward(u, delta, A, B, C)


@torch.library.custom_op("visq::selective_scan", mutates_args=())
def _forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    check_scan("selective_scan", u, delta, A, B, C)
    return backends.call("selective_scan", u.device.type, ScanInputs(u, delta, A, B, C))


@_forward.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    check_scan("selective_scan", u, delta, A, B, C)
    return u.new_empty(u.shape)


@torch.library.custom_op("visq::selective_scan_backward", mutates_args=())
def _backward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, grad_y: Tensor) -> Grads:
    return backends.call("selective_scan_backward", u.device.type, ScanInputs(u, delta, A, B, C), grad_y)


@_backward.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, grad_y: Tensor) -> Grads:
    return like_inputs(ScanInputs(u, delta, A, B, C))


def _save(ctx: Any, inputs: Grads, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_y: Tensor) -> Grads:
    return _backward(*ctx.saved_tensors, grad_y)


_forward.register_autograd(_differentiate, setup_context=_save)
