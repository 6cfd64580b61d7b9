"""The engine's definitions in PyTorch, for devices without the engine: an operation of PyTorch each, never fused.

Additions, products, divisions and roots of float32 are rounded by IEEE 754 on CUDA as on the CPU, so that these are the
engine's bits. A scan takes a few kernels a token and state, which is slow and correct.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visq.integer.arithmetic import EXP2, GELU, GELU_END, GELU_T, GELU_TANH, LANES, LOG1P, LOG2E
from visq.integer.codecs import FactorCodec
from visq.integer.float_scan import FloatScan
from visq.ops import backends


def clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Returns x within low..high; NaN becomes `high`."""
    return torch.where(x.isnan(), high, x.clamp(low, high))


def divided(x: Tensor, by: int) -> Tensor:
    """Returns x / by. By a number of Python, CUDA would multiply with the reciprocal."""
    return x / torch.full_like(x, by)


def one_over(x: Tensor) -> Tensor:
    """Returns 1 / x, rounded to nearest."""
    return torch.ones_like(x) / x


def root(x: Tensor) -> Tensor:
    """Returns the square root, rounded to nearest by way of float64; a CPU's vectors do not round so."""
    return x.double().sqrt().float()


def polynomial(x: Tensor, coefficients: tuple[Any, ...]) -> Tensor:
    """Returns (c0 x + c1) x + ..., with the coefficients of the highest power first."""
    total = torch.full_like(x, float(coefficients[0]))
    for coefficient in coefficients[1:]:
        total = total * x + float(coefficient)
    return total


def exp2(x: Tensor) -> Tensor:
    x = clamp(x, -126, 126)
    whole = x.round()
    scale = ((whole.int() + 127) << 23).view(torch.float32)
    return polynomial(x - whole, (*EXP2, 1.0)) * scale


def silu(x: Tensor) -> Tensor:
    return x / (1 + exp2(-x * float(LOG2E)))


def softplus(x: Tensor) -> Tensor:
    t = exp2(-x.abs() * float(LOG2E))
    return torch.maximum(x, torch.zeros_like(x)) + t * polynomial(t, LOG1P[::-1])


def gelu(x: Tensor) -> Tensor:
    magnitude = x.abs()
    a = torch.minimum(magnitude, torch.full_like(x, float(GELU_END)))
    t = one_over(1 + float(GELU_T) * a)
    tail = (polynomial(t, GELU[::-1]) * t) * exp2((a * a) * float(LOG2E * np.float32(-0.5)))
    return torch.maximum(x, torch.zeros_like(x)) - a * tail


def gelu_tanh(x: Tensor) -> Tensor:
    return x / (1 + exp2((x * x * float(GELU_TANH[1]) + float(GELU_TANH[0])) * x))


def sigmoid(x: Tensor) -> Tensor:
    return one_over(1 + exp2(-x * float(LOG2E)))


def relu(x: Tensor) -> Tensor:
    return torch.where(x < 0, 0.0, x)


def row_sum(x: Tensor) -> Tensor:
    """Returns the sum over the last axis, [..., 1], in the order of `visq.integer.arithmetic.row_sum`."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % LANES))
    lanes = torch.zeros_like(padded[..., :LANES])
    for part in padded.split(LANES, -1):
        lanes = lanes + part
    while lanes.shape[-1] > 1:
        low, high = lanes.chunk(2, -1)
        lanes = low + high
    return lanes


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    mean_square = row_sum(x * x) * float(np.float32(1 / x.shape[-1]))
    return x * one_over(root(mean_square + float(np.float32(eps)))) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x = x - divided(row_sum(x), x.shape[-1])
    variance = divided(row_sum(x * x), x.shape[-1])
    return x * one_over(root(variance + float(np.float32(eps)))) * weight + bias


def mean(x: Tensor) -> Tensor:
    total = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        total = total + x[:, t]
    return divided(total, x.shape[1])


def product(x: Tensor, weight: Tensor) -> Tensor:
    total = x.new_zeros(*x.shape[:-1], len(weight))
    for k in range(weight.shape[1]):
        total = total + x[..., k, None] * weight[:, k]
    return total


def rotate(x: Tensor, inverse_divisor: Tensor, matrix: Tensor) -> Tensor:
    x = x * inverse_divisor
    order, width = len(matrix), x.shape[-1]
    distance = order
    while distance < width:
        pairs = x.unflatten(-1, (width // (2 * distance), 2, distance))
        first, second = pairs.unbind(-2)
        x = torch.stack([first + second, first - second], -2).flatten(-3)
        distance *= 2
    return product(x.unflatten(-1, (width // order, order)), matrix.T).flatten(-2)


def float_scan(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, form: FloatScan) -> Tensor:
    on = lambda values: torch.tensor(values).to(u.device)  # noqa: E731
    A, h = on(form.A * LOG2E), form.h
    state, y, w = u.new_zeros(len(u), *A.shape), torch.empty_like(u), delta
    if h is not None:
        scale, steps = on(h.channel[:, None] * h.state), np.broadcast_to(h.step, u.shape[1])
    if form.bbar is not None:
        channel = on(np.broadcast_to(form.bbar.channel, u.shape[2]))
        w, u = delta * one_over(channel), u * channel
    for t in range(u.shape[1]):
        decay = rounded(exp2(delta[:, t, :, None] * A), form.abar)
        drive = rounded(w[:, t, :, None] * B[:, t, None], form.bbar)
        exact = state = decay * state + drive * u[:, t, :, None]
        if h is not None:
            at = float(steps[t]) * scale
            state = clamp((state * one_over(at)).round(), h.low, h.high) * at
        read = exact if h is not None and not h.read_quantized else state
        total = torch.zeros_like(read[..., 0])
        for n in range(A.shape[1]):
            total = total + C[:, t, n, None] * read[..., n]
        y[:, t] = total
    return y


def rounded(x: Tensor, codec: FactorCodec | None) -> Tensor:
    """Returns x as the codec of Abar or Bbar decodes it; NaN takes the last code."""
    if codec is None:
        return x
    if codec.table is not None:
        table = torch.from_numpy(codec.table).to(x.device)
        return table[torch.bucketize(x.contiguous(), (table[1:] + table[:-1]) / 2)]
    step = float(codec.step)
    inverse = float(np.float32(1) / np.float32(codec.step))
    return clamp((x * inverse).round(), codec.low, codec.high) * step


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "silu": silu,
    "softplus": softplus,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "sigmoid": sigmoid,
    "relu": relu,
    "neg": torch.neg,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "product": product,
    "rotate": rotate,
    "mean": mean,
    "float_scan": float_scan,
}


@backends.register("exact", "torch", devices=("cuda",))
def forward(function: str, x: Tensor, *args: Any) -> Tensor:
    """Returns a function by name; arguments as in `visq.ops.exact`."""
    return FUNCTIONS[function](x, *(arg.detach() if isinstance(arg, Tensor) else arg for arg in args))
