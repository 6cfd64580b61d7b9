"""The engine's definitions in NumPy: the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visq.integer import arithmetic
from visq.integer import float_scan as scan
from visq.integer.arithmetic import Floats
from visq.integer.float_scan import FloatScan
from visq.integer.instructions import ELEMENTWISE, UNARY
from visq.ops import backends


def mean(x: Floats) -> Floats:
    return np.concatenate([np.zeros((0, x.shape[-1]), np.float32), *(arithmetic.mean(image) for image in x)])


def float_scan(u: Floats, delta: Floats, B: Floats, C: Floats, form: FloatScan) -> Floats:
    y = np.empty(u.shape, np.float32)
    for b, image in enumerate(zip(u, delta, B, C, strict=True)):
        y[b] = scan.float_scan(form, *image)
    return y


FUNCTIONS: dict[str, Callable[..., Floats]] = {
    **{name: ELEMENTWISE[name].function for name in UNARY},
    "rms_norm": arithmetic.rms_norm,
    "layer_norm": arithmetic.layer_norm,
    "product": arithmetic.product,
    "rotate": arithmetic.rotate,
    "mean": mean,
    "float_scan": float_scan,
}


@backends.register("exact", "naive", devices=("cpu",))
def forward(function: str, x: Tensor, *args: Any) -> Tensor:
    """Returns a function by name; arguments as in `visq.ops.exact`."""
    arrays = (arg.detach().cpu().numpy() if isinstance(arg, Tensor) else arg for arg in (x, *args))
    return torch.from_numpy(np.ascontiguousarray(FUNCTIONS[function](*arrays))).to(x.device)
