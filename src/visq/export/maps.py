"""Maps in ONNX: which rows a tensor takes from another, and how a map changes its size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from visq.export.graph import Graph
from visq.integer.operations import EnterWindows, LeaveWindows, MergeSamples, Sample
from visq.integer.resampling import parts, taps

Indices = NDArray[np.int64]


def rows_of_windows(source: EnterWindows) -> Indices:
    """Returns, for each row of the windows that cover a map, its row in the map; side^2 outside the map."""
    side, window = source.side, source.window
    across = -(-side // window)
    rows = np.full((across * window,) * 2, side**2)
    rows[:side, :side] = np.arange(side**2).reshape(side, side)
    return rows.reshape(across, window, across, window).swapaxes(1, 2).reshape(-1)


def rows_from_windows(source: LeaveWindows) -> Indices:
    """Returns, for each row of a map, its row in the windows that cover it."""
    order = rows_of_windows(EnterWindows(input=source.input, side=source.side, window=source.window))
    return np.argsort(order, kind="stable")[: source.side**2]


def rows_of_sample(source: Sample) -> Indices:
    """Returns, for each row of a sample, its row in the map; height * width outside the map."""
    rows = np.arange(source.height * source.width).reshape(source.height, source.width)
    outside = ((0, source.height % 2), (0, source.width % 2))
    rows = np.pad(rows, outside, constant_values=rows.size)[source.row :: 2, source.column :: 2]
    return (rows.T if source.by_columns else rows).reshape(-1)


def rows_of_merge(source: MergeSamples) -> Indices:
    """Returns, for each row of a map, its row in its four samples, one behind the other."""
    found = np.zeros((source.height + source.height % 2, source.width + source.width % 2), np.int64)
    first = 0
    for index in range(4):
        row, column = index % 2, index // 2
        place = found[row::2, column::2]
        rows = first + np.arange(place.size)
        found[row::2, column::2] = rows.reshape(place.shape[::-1]).T if row else rows.reshape(place.shape)
        first += place.size
    return found[: source.height, : source.width].reshape(-1)


def taken(graph: Graph, x: str, rows: Indices) -> str:
    """Returns rows of x [B, rows, width] by their numbers."""
    return str(graph.node("Gather", x, graph.constant(rows, np.int64), axis=1))


def bilinear(graph: Graph, x: str, size: tuple[int, int], target: tuple[int, int], width: int) -> str:
    """Returns a map x [B, rows, width] of `size` as one of size `target`, as `visq.integer.resampling` computes it."""
    x = graph.reshape(x, (-1, *size, width))
    for axis in (2, 1):  # along the width first
        low, high, share = taps(size[axis - 1], target[axis - 1])
        share = share.reshape(-1, *[1] * (3 - axis))
        near, far = (str(graph.node("Gather", x, graph.constant(i, np.int64), axis=axis)) for i in (low, high))
        x = graph.add(graph.scaled(near, np.float32(1) - share), graph.mul(far, graph.constant(share)))
    return graph.reshape(x, (-1, target[0] * target[1], width))


def average_pool(graph: Graph, x: str, size: tuple[int, int], target: tuple[int, int]) -> str:
    """Returns the means of the parts of a map x [B, rows, width], as one product with a matrix."""
    shares = [np.zeros((count, length)) for length, count in zip(size, target, strict=True)]
    for matrix in shares:
        for i, (first, end) in enumerate(parts(matrix.shape[1], matrix.shape[0])):
            matrix[i, first:end] = 1 / (end - first)
    return str(graph.node("MatMul", graph.constant(np.kron(*shares)), x))
