"""Defines how maps change their size: bilinear enlargement and averages over parts, in float32 in a defined order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from visq.integer.arithmetic import Floats

Indices = NDArray[np.int64]


def taps(length: int, target: int) -> tuple[Indices, Indices, Floats]:
    """Returns, for each of `target` positions along a side of `length`, the two it lies between and the second's share.

    Position i lies at (i + 1/2) length / target - 1/2 and not before the first, as in `F.interpolate` without aligned
    corners. The share is a quotient of whole numbers in float64, rounded to float32.
    """
    doubled = np.maximum((2 * np.arange(target, dtype=np.int64) + 1) * length - target, 0)
    low = doubled // (2 * target)
    share = ((doubled - low * 2 * target) / np.float64(2 * target)).astype(np.float32)
    return low, np.minimum(low + 1, length - 1), share


def bilinear(x: Floats, height: int, width: int) -> Floats:
    """Returns a map x [h, w, C] float32 resampled to [height, width, C].

    Between two positions a and b with share s of b lies a (1 - s) + b s; along the width first, then along the height.
    """
    (top, bottom, down), (left, right, across) = taps(x.shape[0], height), taps(x.shape[1], width)
    one, across, down = np.float32(1), across[None, :, None], down[:, None, None]
    rows = x[:, left] * (one - across) + x[:, right] * across
    return rows[top] * (one - down) + rows[bottom] * down


def parts(length: int, count: int) -> list[tuple[int, int]]:
    """Returns [first, end) of each of `count` parts of a side, as `F.adaptive_avg_pool2d` cuts it."""
    return [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


def average_pool(x: Floats, height: int, width: int) -> Floats:
    """Returns the means [height, width, C] of the parts of a map x [h, w, C] float32, each added up row by row."""
    result = np.empty((height, width, x.shape[2]), np.float32)
    for i, (top, bottom) in enumerate(parts(x.shape[0], height)):
        for j, (left, right) in enumerate(parts(x.shape[1], width)):
            total = np.zeros(x.shape[2], np.float32)
            for row in x[top:bottom, left:right].reshape(-1, x.shape[2]):
                total = total + row
            result[i, j] = total / np.float32((bottom - top) * (right - left))
    return result
