"""Checks products of 4-bit codes and row instructions against float64, written from docs/integer-semantics.md.

The reference decodes bytes and codes by the formula of the page and multiplies in float64. It shares no code with
`integer.forms` or the codecs, and reads only the numbers of a codec that an artifact stores. The bounds count roundings
to float32, 2^-24 each. Sums of an integer form are exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.runtime.programs import Maker, weight
from visq.integer import operations as ir
from visq.integer.codecs import Codec
from visq.integer.forms import FloatLinear, IntegerConv1d, IntegerConv2d, IntegerLinear, WideLinear
from visq.native.extension import available
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.oracle import Oracle

#: Relative error of one rounding to float32: half a unit in the last place.
ULP = 2.0**-24
#: Roundings of an integer form: the sum, the product of two scales, two products with scales, the bias; one is spare.
ROUNDINGS = 6
#: Kinds of 4-bit quantizers with one scale and one zero point for all channels of a row.
NARROW = (
    "tensor 4 bits",
    "token 4 bits",
    "tensor asymmetric 4 bits",
    "token asymmetric 4 bits",
    "token one zero 4 bits",
)
#: Kinds of quantizers whose values are whole multiples of one unit.
WIDE = ("groups 4 bits", "groups asymmetric 4 bits", "twin table", "token twin table")


def decoded(codec: Codec, data: np.ndarray, reverse: bool = False) -> np.ndarray:
    """Returns the values of bytes [rows, width] in float64.

    These are (byte - offset - zero) * scale * smooth, or table[byte] * scale * smooth.
    """
    rows, width = data.shape
    by_token = codec.step_token is not None

    def spread(x: np.ndarray, along_rows: bool) -> np.ndarray:
        x = x.astype(np.float64)
        if along_rows and x.size > 1:
            return np.broadcast_to((x[::-1] if reverse else x)[:, None], (rows, width))
        return np.broadcast_to(x, (rows, width))

    if codec.table is not None:
        value = codec.table.astype(np.float64)[data]
    else:
        value = data.astype(np.float64) - codec.offset - spread(codec.zero, codec.zero_by_token)
    return value * spread(codec.scale, by_token) * spread(codec.smooth, False)


def expected_weight(maker: Maker, name: str) -> np.ndarray:
    found = maker.bundle.sites[name]
    rows = (-1,) + (1,) * (found.codes.ndim - 1)
    return found.codes.astype(np.float64) * found.scale.astype(np.float64).reshape(rows)


def results(maker: Maker, output: str) -> tuple[Oracle, list[np.ndarray]]:
    """Returns the oracle, and the float32 output of it and of the engine where that is installed."""
    program, images = maker.program(output), maker.images()
    oracle = Oracle(program, maker.bundle)
    oracle(images)
    found = [oracle.tensors[output]]
    if available():
        engine = CpuEngine(program, maker.bundle, threads=1, separate_memory=True)
        engine(images)
        found.append(engine.tensors[output])
    return oracle, found


def compare(found: list[np.ndarray], exact: np.ndarray, magnitude: np.ndarray, roundings: float = ROUNDINGS) -> None:
    """Checks that values are within so many roundings of the exact ones; `magnitude` bounds every rounded value."""
    assert np.abs(exact).max() > 0.01  # something was computed
    for values in found:
        error = np.abs(values.astype(np.float64) - exact)
        assert (error <= roundings * ULP * magnitude).all(), (error / (ULP * magnitude)).max()


@pytest.mark.parametrize("kind", [*NARROW, *WIDE])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("rows", "K", "N"), [(1, 3, 2), (13, 48, 17), (9, 96, 40)])
def test_linear(kind: str, reverse: bool, rows: int, K: int, N: int) -> None:
    maker = Maker(1)
    x = maker.random(rows, K, kind, reverse=reverse)
    w, bias = maker.site(weight(N, (K,), maker.rng, bits=4)), maker.parameter(N)
    maker.operation(ir.Linear(input=x, weight=w, bias=bias), rows, N)
    oracle, found = results(maker, maker.store())
    assert isinstance(oracle.forms[-1], WideLinear if kind in WIDE else IntegerLinear)
    site = maker.tensors[x].site
    assert site is not None
    values = decoded(maker.bundle.sites[site], oracle.tensors[x], reverse)
    b = maker.bundle.tensors[bias].astype(np.float64)
    exact = values @ expected_weight(maker, w).T
    compare(found, exact + b, np.abs(exact) + np.abs(b))


@pytest.mark.parametrize("kind", ["channel 4 bits", "table", None])
def test_linear_in_float(kind: str | None) -> None:
    """Every product and sum is rounded: K + 2 roundings, each of at most the sum of magnitudes."""
    rows, K, N = 7, 33, 9
    maker = Maker(2)
    x = maker.random(rows, K, kind)
    w, bias = maker.site(weight(N, (K,), maker.rng, bits=4)), maker.parameter(N)
    maker.operation(ir.Linear(input=x, weight=w, bias=bias), rows, N)
    oracle, found = results(maker, maker.store())
    assert isinstance(oracle.forms[-1], FloatLinear)
    site = maker.tensors[x].site
    values = (
        oracle.tensors[x].astype(np.float64) if site is None else decoded(maker.bundle.sites[site], oracle.tensors[x])
    )
    matrix, b = expected_weight(maker, w), maker.bundle.tensors[bias].astype(np.float64)
    compare(found, values @ matrix.T + b, np.abs(values) @ np.abs(matrix).T + np.abs(b), K + ROUNDINGS)


DEPTHWISE = ["tensor 4 bits", "channel 4 bits", "channel asymmetric 4 bits", "groups 4 bits", "smooth 4 bits"]


@pytest.mark.parametrize("kind", DEPTHWISE)
@pytest.mark.parametrize("reverse", [False, True])
def test_conv1d(kind: str, reverse: bool) -> None:
    rows, width, taps = 11, 37, 4
    maker = Maker(3)
    x = maker.random(rows, width, kind, reverse=reverse)
    w, bias = maker.site(weight(width, (1, taps), maker.rng, bits=4)), maker.parameter(width)
    maker.operation(ir.Conv1d(input=x, weight=w, bias=bias, reverse=reverse), rows, width)
    oracle, found = results(maker, maker.store(reverse=reverse))
    assert isinstance(oracle.forms[-1], IntegerConv1d)
    site = maker.tensors[x].site
    assert site is not None
    values = decoded(maker.bundle.sites[site], oracle.tensors[x], reverse)[:: -1 if reverse else 1]
    matrix, b = expected_weight(maker, w)[:, 0], maker.bundle.tensors[bias].astype(np.float64)
    exact = np.zeros((rows, width))
    for t in range(rows):
        for k in range(taps):
            if t - taps + 1 + k >= 0:
                exact[t] += values[t - taps + 1 + k] * matrix[:, k]
    exact = exact[:: -1 if reverse else 1]
    compare(found, exact + b, np.abs(exact) + np.abs(b))


@pytest.mark.parametrize("kind", DEPTHWISE)
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (5, 2)])
def test_conv2d(kind: str, kernel: int, padding: int) -> None:
    side, width = 7, 21
    maker = Maker(4)
    x = maker.random(side * side, width, kind)
    w, bias = maker.site(weight(width, (1, kernel, kernel), maker.rng, bits=4)), maker.parameter(width)
    after = side + 2 * padding - kernel + 1
    source = ir.Conv2d(input=x, weight=w, bias=bias, kernel=kernel, padding=padding)
    maker.operation(source, after * after, width)
    oracle, found = results(maker, maker.store())
    assert isinstance(oracle.forms[-1], IntegerConv2d)
    site = maker.tensors[x].site
    assert site is not None
    values = decoded(maker.bundle.sites[site], oracle.tensors[x]).reshape(side, side, width)
    matrix, b = expected_weight(maker, w)[:, 0], maker.bundle.tensors[bias].astype(np.float64)
    exact = np.zeros((after, after, width))
    for row in range(after):
        for column in range(after):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = row + i - padding, column + j - padding
                    if 0 <= y < side and 0 <= z < side:
                        exact[row, column] += values[y, z] * matrix[:, i, j]
    exact = exact.reshape(-1, width)
    compare(found, exact + b, np.abs(exact) + np.abs(b))


# --- row instructions


def body(rows: int, width: int, write: Callable[[Maker], int]) -> tuple[Maker, np.ndarray, list[np.ndarray]]:
    """Returns the maker, the row instruction's input [rows, width] in float64, and its results."""
    maker = Maker(5)
    x = maker.random(rows, width, scale=4.0)
    maker.operation(ir.Rows(), rows, 0)
    maker.operations[-1]["widths"] = {}
    maker.step(ir.Load(dst=0, tensor=x), width)
    register = write(maker)
    oracle, found = results(maker, maker.store(register))
    return maker, oracle.tensors[x].astype(np.float64), found


def erf(x: np.ndarray) -> np.ndarray:
    from math import erf

    return np.vectorize(erf)(x)


#: The float64 function and its error by docs/integer-semantics.md. e^-x has 2e-7 and the rounding of x log2 e.
FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "silu": (lambda x: x / (1 + np.exp(-x)), lambda x, y: np.abs(y) * (2e-7 + (4 + 2 * np.abs(x)) * ULP)),
    "softplus": (lambda x: np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0), lambda x, y: 2e-6 * y),
    "gelu": (lambda x: x * (1 + erf(x / np.sqrt(2))) / 2, lambda x, y: 4e-7 + 2 * ULP * np.abs(y)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x, y: y * (2e-7 + (4 + 2 * np.abs(x)) * ULP)),
    "neg": (lambda x: -x, lambda x, y: 0 * y),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    rows, width = 9, 37
    write = lambda maker: maker.step(ir.Unary(op=name, dst=1, src=0), width)  # noqa: E731
    _, x, found = body(rows, width, write)
    function, bound = FUNCTIONS[name]
    assert np.abs(x).max() > 3
    for values in found:
        assert (np.abs(values - function(x)) <= bound(x, function(x))).all()


@pytest.mark.parametrize(("op", "function"), [("add", np.add), ("mul", np.multiply)])
def test_operations_of_two_registers_round_once(op: str, function: Callable[..., np.ndarray]) -> None:
    """For x and 0.3 x, only the float64 result rounded to float32 is right."""

    def write(maker: Maker) -> int:
        maker.step(ir.WithScalar(dst=1, src=0, value=0.3), 20)
        return maker.step(ir.Binary(op=op, dst=2, a=0, b=1), 20)

    _, x, found = body(5, 20, write)
    scaled = (x * np.float64(np.float32(0.3))).astype(np.float32).astype(np.float64)
    for values in found:
        assert np.array_equal(values, function(x, scaled).astype(np.float32))


@pytest.mark.parametrize("op", ["add_constant", "mul_constant"])
def test_constants_round_once(op: str) -> None:
    def write(maker: Maker) -> int:
        constant = ir.Constant(name=maker.parameter(20))
        return maker.step(ir.WithConstant(op=op, dst=1, src=0, constant=constant), 20)

    maker, x, found = body(5, 20, write)
    constant = list(maker.bundle.tensors.values())[-1].astype(np.float64)
    exact = (x + constant if op == "add_constant" else x * constant).astype(np.float32)
    assert all(np.array_equal(values, exact) for values in found)


@pytest.mark.parametrize("width", [5, 16, 100])
def test_rms_norm(width: int) -> None:
    """Each lane adds width / 16 squares, and lanes are folded four times.

    The root halves the error of this sum. Seven roundings follow.
    """

    def write(maker: Maker) -> int:
        weight = ir.Constant(name=maker.parameter(width))
        return maker.step(ir.RmsNorm(dst=1, src=0, weight=weight, eps=1e-5), width)

    maker, x, found = body(6, width, write)
    scale = list(maker.bundle.tensors.values())[-1].astype(np.float64)
    exact = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * scale
    compare(found, exact, np.abs(exact) + 1e-30, (width / 16 + 6) / 2 + 7)


@pytest.mark.parametrize("width", [5, 16, 100])
def test_layer_norm(width: int) -> None:
    """The mean is off by width / 16 + 6 roundings of the mean magnitude, and this moves every d and the deviation."""

    def write(maker: Maker) -> int:
        weight, bias = (ir.Constant(name=maker.parameter(width)) for _ in range(2))
        return maker.step(ir.LayerNorm(dst=1, src=0, weight=weight, bias=bias, eps=1e-5), width)

    maker, x, found = body(6, width, write)
    scale, bias = (value.astype(np.float64) for value in list(maker.bundle.tensors.values())[-2:])
    d = x - x.mean(1, keepdims=True)
    deviation = np.sqrt((d**2).mean(1, keepdims=True) + 1e-5)
    exact = d / deviation * scale
    moved = np.abs(x).mean(1, keepdims=True) / deviation * np.abs(scale) * (1 + np.abs(d) / deviation)
    compare(found, exact + bias, 2 * np.abs(exact) + np.abs(bias) + moved, width / 16 + 10)


def test_mean() -> None:
    rows, width = 25, 18
    maker = Maker(6)
    x = maker.random(rows, width)
    maker.operation(ir.Mean(input=x), 1, width)
    oracle, found = results(maker, maker.store())
    values = oracle.tensors[x].astype(np.float64)
    compare(found, values.mean(0, keepdims=True), np.abs(values).mean(0, keepdims=True), rows + 1)


@pytest.mark.parametrize(("width", "order"), [(12, 12), (24, 3), (32, 1)])
def test_rotate(width: int, order: int) -> None:
    """The reference multiplies by the full matrix H x matrix with Sylvester's H.

    A sum has log2(runs) + order roundings.
    """

    def write(maker: Maker) -> int:
        matrix = maker.rng.normal(0, 1, (order, order)).astype(np.float32)
        divisor = maker.rng.uniform(0.5, 2, width).astype(np.float32)
        maker.bundle.rotations["r"] = (matrix, divisor)
        return maker.step(ir.Rotate(dst=1, src=0, site="r"), width)

    maker, x, found = body(4, width, write)
    matrix, divisor = (value.astype(np.float64) for value in maker.bundle.rotations["r"])
    hadamard = np.ones((1, 1))
    while len(hadamard) * order < width:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    full = np.kron(hadamard, matrix)
    compare(found, (x / divisor) @ full, np.abs(x / divisor) @ np.abs(full), np.log2(len(hadamard)) + order + 3)
