"""Writes register 0 of an operation into a kernel: finds the function of each source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from visq.integer.operations import (
    AveragePool,
    Bilinear,
    Concat,
    Conv1d,
    Conv2d,
    DenseConv2d,
    EnterWindows,
    LeaveWindows,
    Linear,
    Mean,
    MergeSamples,
    Patches,
    PixelShuffle,
    Rows,
    Sample,
    Transpose,
)
from visq.runtime.cuda import maps, products
from visq.runtime.cuda.bodies import shifted, unsupported
from visq.runtime.cuda.source import Source
from visq.runtime.cuda.text import At, Text


def add_source(source: Source, text: Text, at: At, offset: int) -> str:
    """Writes register 0 at the kernel's rows, from channel `offset` on, and returns its name."""
    make = _SOURCES.get(type(source.operation.source))
    if make is None:
        raise unsupported(source.operation, f"source {source.operation.source.kind}")
    return make(source, source.operation.source, text, shifted(text, at, offset))


def _rows(source: Source, step: Rows, text: Text, at: At) -> str:
    raise AssertionError("a body never reads register 0 of a source that fills nothing")


#: Writes register 0, by the type of the source. A scan has kernels of its own (`scans`).
_SOURCES: dict[type, Callable[[Source, Any, Text, At], str]] = {
    Patches: maps.patches,
    Linear: products.linear,
    Conv1d: products.conv1d,
    Conv2d: products.conv2d,
    DenseConv2d: products.dense_conv2d,
    PixelShuffle: maps.pixel_shuffle,
    Transpose: maps.transpose,
    EnterWindows: maps.enter_windows,
    LeaveWindows: maps.leave_windows,
    Sample: maps.sample,
    MergeSamples: maps.merge_samples,
    Bilinear: maps.bilinear,
    AveragePool: maps.average_pool,
    Mean: maps.mean,
    Concat: maps.concat,
    Rows: _rows,
}
