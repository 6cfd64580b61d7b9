"""Runs single operations of the C++ engine on tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from visq.integer.float_scan import FloatScan
from visq.integer.instructions import UNARY
from visq.native import single_op
from visq.native.single_op import SingleOp
from visq.ops import _native

#: Rows of one task where rows do not depend on each other.
ROWS = 64


def _run(kernel: SingleOp, inputs: list[Tensor], out: Tensor) -> Tensor:
    inputs = [x.contiguous() for x in inputs]
    kernel.run([x.data_ptr() for x in inputs], len(out), out.data_ptr(), _native.threads())
    return out


def _by_rows(x: Tensor, width: int, make: Callable[[int], SingleOp]) -> Tensor:
    """Runs an operation that takes each row of x [..., K] by itself, to [..., width]; `make(rows)` prepares it."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty(len(rows), width)
    whole = len(rows) // ROWS * ROWS
    for first, last, size in ((0, whole, ROWS), (whole, len(rows), len(rows) - whole)):
        if first < last:
            _run(make(size), [rows[first:last]], out[first:last].view(-1, size, width))
    return out.view(*x.shape[:-1], width)


def _unary(function: str, x: Tensor) -> Tensor:
    width = x.shape[-1]
    return _by_rows(x, width, lambda rows: single_op.unary(_native.isa(), function, rows, width))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    scale = weight.detach().numpy()
    return _by_rows(x, x.shape[-1], lambda rows: single_op.rms_norm(_native.isa(), rows, scale, eps))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    arrays = (weight.detach().numpy(), bias.detach().numpy())
    return _by_rows(x, x.shape[-1], lambda rows: single_op.layer_norm(_native.isa(), rows, *arrays, eps))


def product(x: Tensor, weight: Tensor) -> Tensor:
    matrix = weight.detach().contiguous().numpy()
    return _by_rows(x, len(weight), lambda rows: single_op.product(_native.isa(), rows, matrix))


def rotate(x: Tensor, inverse_divisor: Tensor, matrix: Tensor) -> Tensor:
    arrays = (inverse_divisor.detach().numpy(), matrix.detach().contiguous().numpy())
    return _by_rows(x, x.shape[-1], lambda rows: single_op.rotate(_native.isa(), rows, *arrays))


def mean(x: Tensor) -> Tensor:
    return _run(single_op.mean(_native.isa(), *x.shape[1:]), [x], torch.empty(len(x), x.shape[2]))


def float_scan(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, form: FloatScan) -> Tensor:
    return _run(single_op.float_scan(_native.isa(), u.shape[1], form), [u, delta, B, C], torch.empty(u.shape))


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{function: partial(_unary, function) for function in UNARY},
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "product": product,
    "rotate": rotate,
    "mean": mean,
    "float_scan": float_scan,
}


@_native.register_cpp("exact")
def forward(function: str, x: Tensor, *args: Any) -> Tensor:
    """Returns a function by name; arguments as in `visq.ops.exact`."""
    return FUNCTIONS[function](x, *args)
