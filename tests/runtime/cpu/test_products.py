"""Checks that windows, products and convolutions of the C++ engine have the oracle's bits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.agreement import check
from tests.runtime.programs import ISAS, Maker, weight
from visq.integer import forms
from visq.integer import operations as ir
from visq.integer.forms import FloatConv1d, FloatLinear, IntegerConv1d, IntegerLinear, WideLinear
from visq.integer.operations import Constant
from visq.native.extension import available
from visq.runtime.bundle import Weight
from visq.runtime.cpu.engine import CpuEngine

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")


@pytest.mark.parametrize(("patch", "stride", "size"), [(1, 1, 3), (4, 4, 8), (3, 2, 8), (8, 8, 8), (5, 3, 9)])
def test_patches(patch: int, stride: int, size: int) -> None:
    maker = Maker(2, size=size)
    side = (size - patch) // stride + 1
    maker.operation(ir.Patches(patch=patch, stride=stride), side * side, 3 * patch * patch)
    maker.store(kind="tensor")
    check(maker, maker.store(), batch=2)


def test_concatenation() -> None:
    maker = Maker(3)
    a, b = maker.random(7, 21), maker.random(20, 21, "token", reverse=True)
    parts = ((a, 2, 3), Constant(name=maker.parameter(1, 1, 21)), (b, 0, 20), (a, 6, 1))
    maker.operation(ir.Concat(parts=parts), 25, 21)
    check(maker, maker.store())


@pytest.mark.parametrize("kind", ["tensor", "token", "tensor asymmetric", "token asymmetric", "token one zero"])
@pytest.mark.parametrize(("rows", "K", "N"), [(1, 1, 1), (5, 12, 44), (13, 37, 64), (25, 96, 130), (40, 200, 17)])
@pytest.mark.parametrize("bits", [4, 8])
def test_integer_linear(kind: str, rows: int, K: int, N: int, bits: int) -> None:
    maker = Maker(K + N)
    x = maker.random(rows, K, kind, reverse=True)
    bias = maker.parameter(N) if N % 2 else None
    w = maker.site(weight(N, (K,), maker.rng, per_row=N > 20, bits=bits))
    maker.operation(ir.Linear(input=x, weight=w, bias=bias), rows, N)
    maker.store(kind="tensor", top=20)
    oracle = check(maker, maker.store())
    assert isinstance(oracle.forms[-1], IntegerLinear)


@pytest.mark.parametrize("code", [-128, -8, 7])
def test_integer_linear_with_the_largest_sums(code: int) -> None:
    maker = Maker(4)
    x = maker.random(3, 700, "unsigned", scale=1e6)  # nearly all codes are 0 or 255
    w = Weight(np.full((33, 700), code), np.ones(1, np.float32), np.ones(1, np.float32))
    maker.operation(ir.Linear(input=x, weight=maker.site(w)), 3, 33)
    oracle = check(maker, maker.store())
    assert np.abs(oracle.tensors[list(maker.tensors)[-1]]).max() > 1e6 / 128 * abs(code)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if "amx" not in isa])
def test_weights_of_4_bits_lie_packed(isa: str) -> None:
    """A 4-bit weight takes half a byte.

    A 5-bit weight takes one byte, or two where the kernel multiplies 16-bit values.
    """
    N, K = 64, 192
    found = {}
    for bits in (4, 5):
        maker = Maker(9)
        x = maker.random(20, K, "tensor")
        maker.operation(ir.Linear(input=x, weight=maker.site(weight(N, (K,), maker.rng, bits=bits))), 20, N)
        output = maker.store()
        engine = CpuEngine(maker.program(output), maker.bundle, threads=1, isa=isa)
        found[bits] = engine.parameter_bytes
    saved = N * K / 2 if isa == "avx512vnni" else N * K * 3 / 2
    assert found[5] - found[4] == saved


@pytest.mark.parametrize("K", [1, 3, 63, 64, 65, 127, 192])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 32, 33, 48, 70])
@pytest.mark.parametrize("bits", [4, 8])
def test_integer_linear_of_awkward_shapes(rows: int, K: int, bits: int) -> None:
    """Shapes lie around the sizes of registers and tiles, and codes and weights reach both ends of their range."""
    end = 2 ** (bits - 1)
    maker = Maker(rows + K)
    x = maker.random(rows, K, "token asymmetric", scale=100.0)
    maker.bundle.sites[maker.tensors[x].site].inverse_token[:] *= 5  # many values are clipped
    for N in (1, 15, 16, 17, 64, 80):
        codes = maker.rng.integers(-end, end, (N, K))
        extreme = maker.rng.random((N, K)) < 0.5
        codes[extreme] = maker.rng.choice([-end, end - 1], (N, K))[extreme]
        w = Weight(codes, maker.rng.uniform(0.001, 0.01, N).astype(np.float32), np.ones(1, np.float32))
        maker.operation(ir.Linear(input=x, weight=maker.site(w), bias=maker.parameter(N)), rows, N)
        output = maker.store()
    oracle = check(maker, output, threads=(1,))
    assert isinstance(oracle.forms[-1], IntegerLinear)
    if rows * K > 1000:
        assert {0, 255} <= set(np.unique(oracle.tensors[x]))


def test_tiles_of_integers_fill_their_sums() -> None:
    """The largest sums have every code 255, every weight -128 and the longest K the engine takes.

    Sums with 4-bit weights are sixteen times as large until the engine scales them back.
    """
    K, N = 65536, 17
    maker = Maker(20, size=1)
    maker.operation(ir.Patches(patch=1, stride=1), 1, 3)
    pixel = maker.store()
    maker.operation(ir.Linear(input=pixel, weight=maker.parameter(K, 3)), 1, K)
    ones = Constant(name=maker.parameter(1, 1, K))
    maker.bundle.tensors[ones.name] = np.full((1, 1, K), 1e6, np.float32)
    register = maker.step(ir.WithConstant(op="mul_constant", dst=1, src=0, constant=ones), K)
    square = maker.step(ir.Binary(op="mul", dst=2, a=register, b=register), K)
    row = maker.store(square)
    maker.operation(ir.Concat(parts=((row, 0, 1),) * 18), 18, K)
    x = maker.store(kind="unsigned")
    for code in (-8, -128):
        w = Weight(np.full((N, K), code), np.ones(1, np.float32), np.ones(1, np.float32))
        maker.operation(ir.Linear(input=x, weight=maker.site(w)), 18, N)
        output = maker.store()
    oracle = check(maker, output, threads=(1,))
    assert (oracle.tensors[x] == 255).all()


@pytest.mark.parametrize("kind", ["groups", "groups asymmetric", "twin table", "token twin table"])
@pytest.mark.parametrize(("rows", "K", "N"), [(1, 2, 1), (14, 19, 70), (25, 64, 33), (7, 129, 16), (40, 200, 80)])
def test_wide_linear(kind: str, rows: int, K: int, N: int) -> None:
    """Inputs with power-of-two scales of channels, or tables of two steps, are whole numbers of 16 bits."""
    maker = Maker(K + N)
    x = maker.random(rows, K, kind, reverse=True, scale=3.0)
    w = maker.site(weight(N, (K,), maker.rng, per_row=N > 20))
    maker.operation(ir.Linear(input=x, weight=w, bias=maker.parameter(N) if N % 2 else None), rows, N)
    oracle = check(maker, maker.store())
    form = oracle.forms[-1]
    assert isinstance(form, WideLinear)
    # The result must also be the product of the decoded values.
    decl = maker.tensors[x]
    quantizer = maker.bundle.codec(decl.site)
    values = quantizer.decode(oracle.tensors[x], np.arange(rows)[::-1]).astype(np.float64)
    expected = values @ maker.bundle.weight(w).decoded().astype(np.float64).T + form.bias
    np.testing.assert_allclose(
        oracle.tensors[list(maker.tensors)[-1]], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


def test_wide_linear_with_the_largest_sums() -> None:
    K = 515  # 514 * 128 * 32640 + 128 * 255 just fits 32 bits
    for extra, form in ((0, WideLinear), (1, FloatLinear)):
        maker = Maker(4)
        x = maker.random(3, K + extra, "unsigned", scale=1e6)  # nearly all codes are 0 or 255
        site = maker.bundle.codec(maker.tensors[x].site)
        scale = np.full(K + extra, site.scale[0])
        scale[0] /= 128
        inverse = np.float32(1) / scale
        maker.bundle.sites[maker.tensors[x].site] = replace(
            site, scale=scale, step_channel=scale, inverse_channel=inverse
        )
        w = Weight(np.full((33, K + extra), -128), np.ones(1, np.float32), np.ones(1, np.float32))
        maker.operation(ir.Linear(input=x, weight=maker.site(w)), 3, 33)
        oracle = check(maker, maker.store(), threads=(1,))
        assert isinstance(oracle.forms[-1], form)


@given(st.lists(st.integers(-3000, 3000), min_size=2, max_size=40, unique=True), st.floats(1e-4, 10))
def test_tables_of_whole_numbers_are_found(numbers: list[int], unit: float) -> None:
    whole = np.unique([*numbers, 0, 1])
    found = forms._whole((whole * unit).astype(np.float32))
    assert found is not None
    np.testing.assert_allclose(found[0][: len(whole)] * found[1], whole * unit, atol=2e-6 * np.abs(whole).max() * unit)
    assert len(found[0]) == 256 and (found[0][len(whole) :] == found[0][len(whole) - 1]).all()


@pytest.mark.parametrize("table", [[0.0, 0.0], [0.0, 1.0, 2.0**0.5], [0.0, 1e-6, 1.0]])
def test_other_tables_are_not(table: list[float]) -> None:
    assert forms._whole(np.array(table, np.float32)) is None


@pytest.mark.parametrize("kind", [None, "table", "channel", "tensor"])
@pytest.mark.parametrize(("rows", "K", "N"), [(1, 3, 1), (14, 19, 70), (25, 64, 33)])
def test_float_linear(kind: str | None, rows: int, K: int, N: int) -> None:
    maker = Maker(5)
    x = maker.random(rows, K, kind)
    w = maker.parameter(N, K) if kind == "tensor" else maker.site(weight(N, (K,), maker.rng))
    maker.operation(ir.Linear(input=x, weight=w, bias=maker.parameter(N)), rows, N)
    oracle = check(maker, maker.store())
    assert isinstance(oracle.forms[-1], FloatLinear)


@pytest.mark.parametrize("K", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (3, 16), (27, 49)])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["tensor", "channel asymmetric", "token", "table", None])
def test_convolution(K: int, rows: int, width: int, reverse: bool, kind: str | None) -> None:
    maker = Maker(6)
    x = maker.random(rows, width, kind)
    w = maker.site(weight(width, (1, K), maker.rng))
    maker.operation(ir.Conv1d(input=x, weight=w, bias=maker.parameter(width), reverse=reverse), rows, width)
    oracle = check(maker, maker.store(), threads=(2,))
    integer = kind in ("tensor", "channel asymmetric")
    assert isinstance(oracle.forms[-1], IntegerConv1d if integer else FloatConv1d)
