"""Selective scan with a quantized hidden state and quantized abar and bbar, as an integer engine computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visq.ops import backends
from visq.ops._checks import check_scan, float_under_autocast
from visq.ops._scan import INPUTS_SCHEMA, ROUNDING_SCHEMA, Grads, ScanInputs, like_inputs, unflatten
from visq.ops.quantized_scan import cpp, naive, triton  # noqa: F401  (they register themselves)
from visq.ops.quantized_scan.params import (
    StateRounding,
    Table,
    Uniform,
    absorb,
    check_rounding,
    check_rounding_values,
    rounding_of,
)

_OP = "quantized_scan"


def quantized_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    state: StateRounding | None = None,
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
    inputs = ScanInputs(*float_under_autocast(u, delta, A, B, C))
    length = u.shape[1] if u.dim() == 3 else 1  # a wrong shape is named by the operator
    return _forward(*absorb(bbar, inputs), *rounding_of(state, abar, bbar, length))


def _run(*args: Any) -> Tensor:
    inputs, rounding, _ = unflatten(args)
    check_scan(_OP, *inputs)
    check_rounding(_OP, inputs, rounding)
    check_rounding_values(_OP, rounding)
    return backends.call(_OP, inputs.device, inputs, rounding)


_forward = torch.library.custom_op(
    "visq::quantized_scan", _run, mutates_args=(), schema=f"({INPUTS_SCHEMA}, {ROUNDING_SCHEMA}) -> Tensor"
)


@_forward.register_fake
def _(*args: Any) -> Tensor:
    inputs, rounding, _ = unflatten(args)
    check_scan(_OP, *inputs)
    check_rounding(_OP, inputs, rounding)
    return inputs.u.new_empty(inputs.u.shape)


def _run_backward(*args: Any) -> Grads:
    inputs, rounding, (grad_y,) = unflatten(args)
    return backends.call(f"{_OP}_backward", inputs.device, inputs, rounding, grad_y)


_backward = torch.library.custom_op(
    "visq::quantized_scan_backward",
    _run_backward,
    mutates_args=(),
    schema=f"({INPUTS_SCHEMA}, {ROUNDING_SCHEMA}, Tensor grad_y) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_backward.register_fake
def _(*args: Any) -> Grads:
    inputs, _, _ = unflatten(args)
    return like_inputs(inputs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    tensors = iter(ctx.saved_tensors)
    inputs = [next(tensors) if other is None else other[0] for other in ctx.others]
    return (*_backward(*inputs, grad_y), *[None] * (len(inputs) - len(ScanInputs._fields)))


_forward.register_autograd(_differentiate, setup_context=_save)
