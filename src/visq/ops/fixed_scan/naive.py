"""The engine's definition in NumPy, image by image: the oracle of the fast kernel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from visq.integer.scans import IntegerScan, integer_scan
from visq.ops import backends


@backends.register("fixed_scan", "naive", devices=("cpu",))
def forward(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, scan: IntegerScan) -> Tensor:
    """Returns y [B, L, d_inner]; arguments as in `visq.ops.fixed_scan`."""
    arrays = [x.detach().cpu().numpy() for x in (u, delta, B)]
    integers = C.detach().cpu().numpy().astype(np.int64)
    ys = [integer_scan(scan, *image) for image in zip(*arrays, integers, strict=True)]
    return torch.from_numpy(np.stack(ys)).to(u.device) if ys else torch.empty_like(u)
