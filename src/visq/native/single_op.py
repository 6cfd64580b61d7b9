"""Runs single operations of the C++ engine on the caller's arrays.

The simulation uses them so that its float32 results have the engine's bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from visq.integer.arithmetic import Floats
from visq.integer.float_scan import FloatScan
from visq.integer.scans import IntegerScan
from visq.native.extension import _C, engine_isa
from visq.native.flat_file import FlatFile
from visq.native.memory import LANES, LINE, SPARE, Arena, empty, flat, pad, row_bytes
from visq.native.scans import add_float_scan, add_integer_scan

#: Writes the operation into a file: (file, indices of the inputs, index of a scan's y) -> register of the result.
Write = Callable[[FlatFile, list[int], int], int]


class SingleOp:
    """An engine program with one operation over float32 tensors.

    Arguments:
        isa: a level of `visq.ops`; the engine's fastest variant of it runs.
        inputs, result: the shape (rows, width) of each input and of the result.
        write: writes the operation.
        zero_points: [rows], if the last input holds bytes: the zero point of each row.
    """

    def __init__(
        self,
        isa: str,
        inputs: list[tuple[int, int]],
        result: tuple[int, int],
        write: Write,
        zero_points: Floats | None = None,
    ) -> None:
        file = FlatFile(1, 1)
        arena = Arena(LINE)
        self._inputs = []
        for index, (rows, width) in enumerate(inputs):
            coded = zero_points is not None and index == len(inputs) - 1
            codec = _byte_codec(file, rows, width, zero_points) if coded and zero_points is not None else -1
            offset = arena.take(rows * row_bytes(width, coded))
            self._inputs.append(file.add_tensor(rows, width, offset, codec))
        rows, width = result
        y, found = (
            file.add_tensor(rows, width, arena.take(rows * row_bytes(width, coded=False)), -1) for _ in range(2)
        )
        file.add("store", write(file, self._inputs, y), found)
        file.add("finish", arena.size + SPARE, found)
        self._engine = _C.Engine(engine_isa(isa), file.bytes())

    def run(self, addresses: list[int], batch: int, out: int, threads: int) -> None:
        """Runs on `batch` images.

        Arguments:
            addresses: of the inputs, contiguous [batch, rows, width].
            out: address of the result, contiguous [batch, rows, width] float32.
        """
        self._engine.run_single(list(zip(self._inputs, addresses, strict=True)), batch, out, threads)


def _byte_codec(file: FlatFile, rows: int, width: int, zero: Floats) -> int:
    ones, none = np.ones(max(rows, width), np.float32), empty()
    channels, tokens = ones[:width], ones[:rows]
    return file.add_codec(
        width, rows, channels, channels, tokens, tokens, none, flat(zero).astype(np.float32), 0.0, 255.0, none, none
    )


def fixed_scan(isa: str, scan: IntegerScan) -> SingleOp:
    """Returns the operation u, delta [L, C], B [L, N] float32, and C [L, N] bytes -> y [L, C] float32."""
    (channels, states), length = scan.shape, len(scan.input_step)

    def write(file: FlatFile, tensors: list[int], y: int) -> int:
        add_integer_scan(file, tensors, y, False, scan)
        return 0

    inputs = [(length, channels), (length, channels), (length, states), (length, states)]
    return SingleOp(isa, inputs, (length, channels), write, zero_points=scan.C_zero.astype(np.float32))


def float_scan(isa: str, length: int, form: FloatScan) -> SingleOp:
    """Returns the operation u, delta [L, C], B, C [L, N] -> y [L, C], all float32."""
    channels, states = form.A.shape

    def write(file: FlatFile, tensors: list[int], y: int) -> int:
        add_float_scan(file, tensors, y, False, length, form)
        return 0

    inputs = [(length, channels), (length, channels), (length, states), (length, states)]
    return SingleOp(isa, inputs, (length, channels), write)


def unary(isa: str, function: str, rows: int, width: int) -> SingleOp:
    """Returns the operation that applies `function` (`silu`, `softplus` or `gelu`) to x [rows, width] float32."""
    return _of_rows(isa, rows, width, lambda file, slot: file.add("unary", function, 1, 0, slot))


def rms_norm(isa: str, rows: int, weight: Floats, eps: float) -> SingleOp:
    """Returns the operation `arithmetic.rms_norm` of x [rows, width] with weight [width]."""
    width = len(weight)
    return _of_rows(isa, rows, width, lambda file, slot: file.add("rms_norm", 1, 0, flat(weight), eps, slot))


def layer_norm(isa: str, rows: int, weight: Floats, bias: Floats, eps: float) -> SingleOp:
    """Returns the operation `arithmetic.layer_norm` of x [rows, width] with weight and bias [width]."""
    arrays = (flat(weight), flat(bias))
    return _of_rows(isa, rows, len(weight), lambda file, slot: file.add("layer_norm", 1, 0, *arrays, eps, slot))


def mean(isa: str, rows: int, width: int) -> SingleOp:
    """Returns the operation that takes the mean over the rows of x [rows, width], as [1, width]."""

    def write(file: FlatFile, tensors: list[int], y: int) -> int:
        file.add("mean", tensors[0])
        return 0

    return SingleOp(isa, [(rows, width)], (1, width), write)


def product(isa: str, rows: int, weight: Floats) -> SingleOp:
    """Returns the operation x [rows, K] by weight [N, K] -> [rows, N], added in the order of K."""
    width, length = weight.shape

    def write(file: FlatFile, tensors: list[int], y: int) -> int:
        file.add("float_linear", rows, width, tensors[0], flat(weight), np.zeros(width, np.float32))
        return 0

    return SingleOp(isa, [(rows, length)], (rows, width), write)


def rotate(isa: str, rows: int, inverse_divisor: Floats, matrix: Floats) -> SingleOp:
    """Returns the operation `arithmetic.rotate` of x [rows, C] with inverse_divisor [C] and matrix [m, m]."""
    arrays = (flat(inverse_divisor), flat(matrix))
    return _of_rows(isa, rows, len(inverse_divisor), lambda file, slot: file.add("rotate", 1, 0, *arrays, slot))


def _of_rows(isa: str, rows: int, width: int, step: Callable[[FlatFile, int], None]) -> SingleOp:
    """Returns the operation with the one row instruction that `step` writes, from register 0 to register 1."""

    def write(file: FlatFile, tensors: list[int], y: int) -> int:
        file.add("rows", rows)
        file.add("load", 0, tensors[0], -1, 0)
        step(file, pad(width, LANES))
        return 1

    return SingleOp(isa, [(rows, width)], (rows, width), write)
