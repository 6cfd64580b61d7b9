"""Selective scan with a quantized hidden state and quantized abar and bbar, as an integer engine computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visq.ops import backends
from visq.ops._checks import check_scan, float_under_autocast
from visq.ops.quantized_scan import cpp, naive  # noqa: F401  (they register themselves)
from visq.ops.quantized_scan.params import (
    StateQuantizer,
    Table,
    Uniform,
    absorb,
    check_factor,
    check_state,
    check_state_values,
    check_table_values,
    flatten,
)

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
_OP = "quantized_scan"


def quantized_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    state: StateQuantizer | None = None,
    abar: Uniform | Table | None = None,
    bbar: Uniform | Table | None = None,
) -> Tensor:
    """Runs the selective recurrence with rounded factors and a rounded state.

        abar = Qa(exp(delta_t A)),  bbar = Qb(delta_t B_t),  h_t = abar hq_{t-1} + bbar u_t,  hq_t = Qh(h_t)
        y_t = sum_n C_t[n] (hq_t or h_t)[:, n],  hq_{-1} = 0

    Differentiable in the five tensors by straight-through: the derivative of each quantizer is 1 where the rounded code
    lies in [qmin, qmax] (a table: where x lies in [values[0], values[-1]]) and 0 elsewhere. Scales get no gradient.

    Arguments:
        u, delta, A, B, C: as in `selective_scan`.
        state: quantizer of h, with one scale per step (in scan order), channel and state; None leaves h unrounded.
        abar, bbar: quantizers of the two discretized factors; None leaves them unrounded. Bbar may have divisors per
            channel.

    Returns:
        y, float32 [B, L, d_inner]. NaN in gives NaN out. Bit-identical for any number of threads.

    Raises:
        VisqError: on a wrong shape or dtype, a scale that is not positive and finite, a table that is not sorted, or
            per-step scales made for another L.
    """
    u, delta, A, B, C = float_under_autocast(u, delta, A, B, C)
    u, delta, A = absorb(bbar, u, delta, A)
    abar_table, abar_uniform = flatten(abar)
    bbar_table, bbar_uniform = flatten(bbar)
    if state is None:
        return _forward(
            u, delta, A, B, C, None, None, None, [0, 0], True, abar_table, abar_uniform, bbar_table, bbar_uniform
        )
    step = state.step
    if step.shape == (1,) and u.dim() == 3 and u.shape[1] != 1:
        step = step.expand(u.shape[1])
    return _forward(
        u,
        delta,
        A,
        B,
        C,
        step,
        state.channel,
        state.state,
        [state.qmin, state.qmax],
        state.read_quantized,
        abar_table,
        abar_uniform,
        bbar_table,
        bbar_uniform,
    )


@torch.library.custom_op("visq::quantized_scan", mutates_args=())
def _forward(
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
    _check(u, delta, A, B, C, step, channel, state, state_range, abar_table, bbar_table)
    if step is not None and channel is not None and state is not None:
        check_state_values(_OP, step, channel, state)
    check_table_values(_OP, "abar", abar_table)
    check_table_values(_OP, "bbar", bbar_table)
    return backends.call(
        _OP,
        u.device.type,
        u,
        delta,
        A,
        B,
        C,
        step,
        channel,
        state,
        state_range,
        read_quantized,
        abar_table,
        abar_uniform,
        bbar_table,
        bbar_uniform,
    )


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    step: Tensor | None,
    channel: Tensor | None,
    state: Tensor | None,
    state_range: Sequence[int],
    abar_table: Tensor | None,
    bbar_table: Tensor | None,
) -> None:
    check_scan(_OP, u, delta, A, B, C)
    if step is not None and channel is not None and state is not None:
        check_state(_OP, step, channel, state, u.shape[1], u.shape[2], A.shape[1], state_range)
    check_factor(_OP, "abar", abar_table)
    check_factor(_OP, "bbar", bbar_table)


@_forward.register_fake
def _(
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
    _check(u, delta, A, B, C, step, channel, state, state_range, abar_table, bbar_table)
    return u.new_empty(u.shape)


@torch.library.custom_op("visq::quantized_scan_backward", mutates_args=())
def _backward(
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
    return backends.call(
        "quantized_scan_backward",
        u.device.type,
        u,
        delta,
        A,
        B,
        C,
        step,
        channel,
        state,
        state_range,
        read_quantized,
        abar_table,
        abar_uniform,
        bbar_table,
        bbar_uniform,
        grad_y,
    )


@_backward.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> Grads:
    u_, delta_, A_, B_, C_ = (x.new_empty(x.shape) for x in (u, delta, A, B, C))
    return u_, delta_, A_, B_, C_


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    tensors = iter(ctx.saved_tensors)
    inputs = [next(tensors) if other is None else other[0] for other in ctx.others]
    return (*_backward(*inputs, grad_y), *[None] * (len(inputs) - 5))


_forward.register_autograd(_differentiate, setup_context=_save)
