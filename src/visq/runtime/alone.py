"""Single operations of the C++ engine on arrays of the caller: what the simulation runs where bits depend on how a
float32 is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from visq.runtime import cpu
from visq.runtime.arithmetic import Floats
from visq.runtime.cpu import LANES, LEVELS, LINE, Lives, add_float_scan, add_integer_scan, flat, pad
from visq.runtime.forms import FloatScan
from visq.runtime.fused_scan import IntegerScan

#: Writes the operation: (engine, indices of the tensors it reads, that of a scan's y) -> register of the result.
Write = Callable[[Any, list[int], int], int]


class Alone:
    """A program of one operation over float32 tensors, `inputs` of (rows, width), with a result [rows, width].

    Args:
        isa: a level of VISQ_ISA; the fastest kernel of that level is taken.
        codes: the last input is bytes, and this their zero point by row.
    """

    def __init__(
        self,
        isa: str,
        inputs: list[tuple[int, int]],
        result: tuple[int, int],
        write: Write,
        codes: Floats | None = None,
    ) -> None:
        present = cpu.present_isas()
        self._engine = cpu._C.Engine(next(kernel for kernel in LEVELS.get(isa, (isa,)) if kernel in present), 1, 1)
        arena = Lives(LINE)
        self._inputs = []
        for index, (rows, width) in enumerate(inputs):
            coded = codes is not None and index == len(inputs) - 1
            stride = pad(width, LINE) if coded else pad(width, LANES) * 4
            quantizer = self._bytes(rows, width, codes) if coded and codes is not None else -1
            self._inputs.append(self._engine.add_tensor(rows, width, arena.take(rows * stride), quantizer))
        rows, width = result
        y, found = (
            self._engine.add_tensor(rows, width, arena.take(rows * pad(width, LANES) * 4), -1) for _ in range(2)
        )
        self._engine.store(write(self._engine, self._inputs, y), found)
        # Read by whole vectors, the last row may be read beyond its end.
        self._engine.finish(arena.size + 4 * LINE, found)

    def _bytes(self, rows: int, width: int, zero: Floats) -> int:
        ones, none = np.ones(max(rows, width), np.float32), np.zeros(0, np.float32)
        channels, tokens = ones[:width], ones[:rows]
        limits = (0.0, 255.0)
        return int(
            self._engine.add_quantizer(
                width, rows, channels, channels, tokens, tokens, none, flat(zero), *limits, none, none
            )
        )

    def run(self, addresses: list[int], batch: int, out: int, threads: int) -> None:
        """Addresses of [batch, rows, width] of each input and of the result, contiguous."""
        self._engine.run_alone(list(zip(self._inputs, addresses, strict=True)), batch, out, threads)


def fixed_scan(isa: str, scan: IntegerScan) -> Alone:
    """u, delta [L, C], B [L, N] float32, and C [L, N] bytes -> y [L, C]."""
    (channels, states), length = scan.a.shape, len(scan.input_step)

    def write(engine: Any, tensors: list[int], y: int) -> int:
        add_integer_scan(engine, tensors, y, False, scan)
        return 0

    inputs = [(length, channels), (length, channels), (length, states), (length, states)]
    return Alone(isa, inputs, (length, channels), write, codes=scan.C_zero.astype(np.float32))


def float_scan(isa: str, length: int, form: FloatScan) -> Alone:
    """u, delta [L, C], B, C [L, N] -> y [L, C]."""
    channels, states = form.A.shape

    def write(engine: Any, tensors: list[int], y: int) -> int:
        add_float_scan(engine, tensors, y, False, length, form)
        return 0

    inputs = [(length, channels), (length, channels), (length, states), (length, states)]
    return Alone(isa, inputs, (length, channels), write)


def unary(isa: str, function: str, rows: int, width: int) -> Alone:
    """`silu`, `softplus` or `gelu` of x [rows, width]."""
    return _of_rows(isa, rows, width, lambda engine, slot: engine.unary(function, 1, 0, slot))


def rms_norm(isa: str, rows: int, weight: Floats, eps: float) -> Alone:
    width = len(weight)
    return _of_rows(isa, rows, width, lambda engine, slot: engine.rms_norm(1, 0, flat(weight), eps, slot))


def layer_norm(isa: str, rows: int, weight: Floats, bias: Floats, eps: float) -> Alone:
    arrays = (flat(weight), flat(bias))
    return _of_rows(isa, rows, len(weight), lambda engine, slot: engine.layer_norm(1, 0, *arrays, eps, slot))


def mean(isa: str, rows: int, width: int) -> Alone:
    """x [rows, width] -> [1, width]."""

    def write(engine: Any, tensors: list[int], y: int) -> int:
        engine.mean(tensors[0])
        return 0

    return Alone(isa, [(rows, width)], (1, width), write)


def product(isa: str, rows: int, weight: Floats) -> Alone:
    """x [rows, K] by weight [N, K] -> [rows, N], added up in the order of K."""
    width, length = weight.shape

    def write(engine: Any, tensors: list[int], y: int) -> int:
        engine.float_linear(rows, width, tensors[0], flat(weight), np.zeros(width, np.float32))
        return 0

    return Alone(isa, [(rows, length)], (rows, width), write)


def rotate(isa: str, rows: int, inverse_divisor: Floats, matrix: Floats) -> Alone:
    """x [rows, C] by H x matrix [m, m], see `arithmetic.rotate`."""
    arrays = (flat(inverse_divisor), flat(matrix))
    return _of_rows(isa, rows, len(inverse_divisor), lambda engine, slot: engine.rotate(1, 0, *arrays, slot))


def _of_rows(isa: str, rows: int, width: int, step: Callable[[Any, int], None]) -> Alone:
    """One row instruction, from register 0 to 1."""

    def write(engine: Any, tensors: list[int], y: int) -> int:
        engine.rows(rows)
        engine.load(0, tensors[0], -1, 0)
        step(engine, pad(width, LANES))
        return 1

    return Alone(isa, [(rows, width)], (rows, width), write)
