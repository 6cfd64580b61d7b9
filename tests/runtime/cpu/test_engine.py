"""The C++ engine against the oracle: the same bits in every tensor, whatever the instruction set, threads and batch."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.programs import ISAS, QUANTIZERS, Maker, weight
from visq.errors import VisqError
from visq.integer import forms
from visq.integer import operations as ir
from visq.integer.arithmetic import gelu, silu, softplus
from visq.integer.codecs import FactorCodec, StateCodec
from visq.integer.fixed_scan import FixedScan
from visq.integer.float_scan import FloatScan
from visq.integer.forms import FloatConv1d, FloatLinear, IntegerConv1d, IntegerLinear, WideLinear
from visq.integer.fused_scan import FusedScan
from visq.integer.operations import Constant
from visq.native.extension import EMULATED, available, engine_isa, engine_isas, has_engine_isa
from visq.runtime.bundle import Weight
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.oracle import Oracle

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")


def check(maker: Maker, output: str, isas=ISAS, threads=(1, 2), batch: int = 1) -> Oracle:
    """Every tensor of the last image is the oracle's, and every image's result."""
    program, images = maker.program(output), maker.images(batch)
    oracle = Oracle(program, maker.bundle)
    expected = oracle(images)
    assert np.isfinite(expected).all()
    for isa in isas:
        for count in threads:
            engine = CpuEngine(program, maker.bundle, threads=count, isa=isa, separate_memory=True)
            assert same(engine(images), expected), (isa, count)
            tensors = engine.tensors
            for name, value in oracle.tensors.items():
                assert tensors[name].dtype == value.dtype
                assert same(tensors[name], value), (isa, count, name)
            small = CpuEngine(program, maker.bundle, threads=count, isa=isa)
            assert same(small(images), expected), (isa, count, "memory used again")
    return oracle


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit; but zeros are equal, whatever their sign."""
    return a.shape == b.shape and np.array_equal(a, b)


# --- quantizers and row instructions


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 16), (13, 37), (30, 100), (3, 128), (7, 261)])
@pytest.mark.parametrize("reverse", [False, True])
def test_encode_and_decode(kind: str, rows: int, width: int, reverse: bool) -> None:
    maker = Maker(rows + width)
    codes = maker.random(rows, width, kind, reverse=reverse)
    maker.operation(ir.Concat(parts=((codes, 0, rows),)), rows, width)
    site = maker.quantizer(kind, rows, width, top=2.0)
    rounded = maker.step(ir.Round(dst=1, src=0, site=site, reverse=reverse), width)
    check(maker, maker.store(rounded), threads=(1,))


@pytest.mark.parametrize(
    ("width", "order"), [(1, 1), (45, 45), (10, 5), (40, 5), (64, 1), (48, 12), (192, 12), (256, 16), (160, 20)]
)
def test_rotations(width: int, order: int) -> None:
    """Dense, and sums and differences of runs of any length before a small matrix."""
    rows = 29
    maker = Maker(width + order)
    x = maker.random(rows, width)
    maker.operation(ir.Concat(parts=((x, 0, rows),)), rows, width)
    for register in (1, 2):
        site = maker.quantizer("token", rows, width)
        divisor = maker.rng.uniform(0.5, 2, width).astype(np.float32) * maker.rng.choice([-1, 1], width)
        matrix = maker.rng.normal(0, 0.2, (order, order)).astype(np.float32)
        maker.bundle.rotations[site] = (matrix, divisor.astype(np.float32))
        maker.store(maker.step(ir.Rotate(dst=register, src=register - 1, site=site), width), "token")
    check(maker, maker.store(2), threads=(1, 3))


def test_every_instruction() -> None:
    rows, width = 29, 45
    maker = Maker(1)
    x, codes = maker.random(rows, width), maker.random(rows, width, "token asymmetric")
    maker.operation(ir.Rows(), rows, 0)
    maker.operations[-1]["widths"] = {}

    def add(instruction: ir.Instruction, size: int = width) -> int:
        return maker.step(instruction, size)

    vector, matrix = Constant(name=maker.parameter(1, 1, width)), Constant(name=maker.parameter(rows, width))
    add(ir.Load(dst=0, tensor=x))
    add(ir.Load(dst=1, tensor=codes))
    add(ir.Load(dst=2, tensor=x, row=3))
    add(ir.Load(dst=3, tensor=codes, row=rows - 1))
    add(ir.Binary(op="add", dst=4, a=0, b=1))
    add(ir.Binary(op="mul", dst=5, a=2, b=3))
    add(ir.Unary(op="silu", dst=6, src=4))
    add(ir.Unary(op="softplus", dst=7, src=5))
    add(ir.Unary(op="neg", dst=8, src=7))
    add(ir.WithConstant(op="add_constant", dst=9, src=8, constant=vector))
    add(ir.WithConstant(op="mul_constant", dst=10, src=9, constant=matrix))
    add(ir.WithScalar(dst=11, src=10, value=0.3))
    add(ir.Slice(dst=12, src=11, offset=7, width=31), 31)
    add(ir.Slice(dst=13, src=12, offset=3, width=17), 17)
    add(ir.RmsNorm(dst=14, src=11, weight=Constant(name=maker.parameter(width)), eps=1e-5))
    add(ir.RmsNorm(dst=15, src=13, weight=Constant(name=maker.parameter(17)), eps=1e-5), 17)
    add(ir.Round(dst=16, src=15, site=maker.quantizer("token", rows, 17)), 17)
    site = maker.quantizer("token", rows, width)
    divisor = maker.rng.uniform(0.5, 2, width).astype(np.float32)
    maker.bundle.rotations[site] = (maker.rng.normal(0, 0.2, (width, width)).astype(np.float32), divisor)
    add(ir.Rotate(dst=17, src=14, site=site))
    add(ir.Unary(op="gelu", dst=18, src=10))
    norm = [Constant(name=maker.parameter(size)) for size in (width, width, 17, 17)]
    add(ir.LayerNorm(dst=19, src=18, weight=norm[0], bias=norm[1], eps=1e-5))
    add(ir.LayerNorm(dst=20, src=13, weight=norm[2], bias=norm[3], eps=1e-5), 17)
    maker.store(20)
    maker.store(19, "token")
    for register, kind in [(6, "tensor"), (7, "unsigned"), (13, "channel"), (16, "table"), (17, "token")]:
        maker.store(register, kind)
        maker.store(register)
    output = maker.store(12, "channel asymmetric")
    check(maker, output, threads=(1, 3))


@given(st.lists(st.floats(-200, 200, width=32), min_size=16, max_size=16))
@settings(max_examples=30, deadline=None)
def test_functions_of_any_number(values: list[float]) -> None:
    maker = Maker(size=4, channels=1)
    maker.operation(ir.Patches(patch=4, stride=1), 1, 16)
    for index, op in enumerate(("silu", "softplus", "gelu", "neg")):
        maker.step(ir.Unary(op=op, dst=index + 1, src=0), 16)
    names = [maker.store(register) for register in (1, 2, 3, 4)]
    program = maker.program(names[0])
    image = np.array(values, np.float32).reshape(1, 1, 4, 4)
    for isa in ISAS:
        engine = CpuEngine(program, maker.bundle, threads=1, isa=isa, separate_memory=True)
        engine(image)
        x = image.reshape(1, 16)
        assert np.array_equal(engine.tensors[names[0]], silu(x)), isa
        assert np.array_equal(engine.tensors[names[1]], softplus(x)), isa
        assert np.array_equal(engine.tensors[names[2]], gelu(x)), isa


# --- sources


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
    """Half a byte each, also where one more bit makes every weight a byte, or two without a product of bytes."""
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
    """Around the sizes of registers and tiles, with codes and weights at both ends of their range."""
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
    """The largest sums there are: every code 255 and every weight -128, for as long a sum as the engine takes. Those of
    4 bits are sixteen times as large on their way."""
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
    """Inputs whose values are whole numbers of 16 bits: power-of-two scales of channels, tables of two steps."""
    maker = Maker(K + N)
    x = maker.random(rows, K, kind, reverse=True, scale=3.0)
    w = maker.site(weight(N, (K,), maker.rng, per_row=N > 20))
    maker.operation(ir.Linear(input=x, weight=w, bias=maker.parameter(N) if N % 2 else None), rows, N)
    oracle = check(maker, maker.store())
    form = oracle.forms[-1]
    assert isinstance(form, WideLinear)
    # The same as the product of what the codes stand for.
    decl = maker.tensors[x]
    quantizer = maker.bundle.codec(decl.site)
    values = quantizer.decode(oracle.tensors[x], np.arange(rows)[::-1]).astype(np.float64)
    expected = values @ maker.bundle.weight(w).decoded().astype(np.float64).T + form.bias
    np.testing.assert_allclose(
        oracle.tensors[list(maker.tensors)[-1]], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


def test_wide_linear_with_the_largest_sums() -> None:
    K = 515  # 514 times 128 times 32640 and once 128 times 255: just inside 32 bits
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


# --- the scan


def start_scan(
    maker: Maker,
    rows: int,
    width: int,
    states: int,
    *,
    abar: str | None = "uniform",
    bbar: str | None = "uniform",
    h: str | None = "steps",
    c: str = "tensor",
    b: str | None = "tensor",
    u: str | None = "tensor",
    delta: str | None = "unsigned",
    bits: int = 8,
    reverse: bool = False,
    read_quantized: bool = True,
    largest_u: float = 1.0,
) -> None:
    rng = maker.rng

    def factor(kind: str | None, signed: bool, top: float) -> str | None:
        if kind is None:
            return None
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        table = np.sort(rng.uniform(-top if signed else 0, top, 2**bits)).astype(np.float32)
        table = table if kind.startswith("table") else None
        channel = np.geomspace(1.0, 0.01, width) if kind.endswith("channels") else np.ones(1)
        return maker.site(FactorCodec(bits, low, high, np.float32(top / high), channel.astype(np.float32), table))

    names = {
        "u": maker.random(rows, width, u, scale=largest_u, reverse=reverse),
        "B": maker.random(rows, states, b, reverse=reverse),
        "C": maker.random(rows, states, c, reverse=reverse),
    }
    source = maker.random(rows, width, scale=2.0)
    maker.operation(ir.Rows(), rows, 0)
    maker.operations[-1]["widths"] = {}
    maker.step(ir.Load(dst=0, tensor=source), width)
    maker.step(ir.Unary(op="softplus", dst=1, src=0), width)
    names["delta"] = maker.store(1, delta, reverse)
    log_a = maker.parameter(width, states)
    size = rows if h == "steps" else 1
    state = None
    if h is not None:
        state = maker.site(
            StateCodec(
                low=-(2 ** (bits - 1)),
                high=2 ** (bits - 1) - 1,
                bits=bits,
                step=(rng.uniform(0.5, 2.0, size) * largest_u / 2 ** (bits - 1)).astype(np.float32),
                channel=rng.uniform(0.25, 4.0, width).astype(np.float32),
                state=(rng.uniform(0.5, 2.0, states) if h == "states" else np.ones(states)).astype(np.float32),
                read_quantized=read_quantized,
            )
        )
    maker.operation(
        ir.Scan(
            **names,
            A=Constant(name=log_a, functions=("exp", "neg")),
            abar=factor(abar, False, 1.0),
            bbar=factor(bbar, True, 2.0),
            h=state,
            reverse=reverse,
        ),
        rows,
        width,
    )


def make_scan(maker: Maker, rows: int, width: int, states: int, **options: object) -> str:
    """y as codes and as floats."""
    start_scan(maker, rows, width, states, **options)  # type: ignore[arg-type]
    maker.store(kind="tensor")
    return maker.store()


@pytest.mark.parametrize(("rows", "width", "states"), [(1, 1, 1), (9, 16, 2), (20, 33, 5), (26, 40, 16)])
@pytest.mark.parametrize("abar", ["uniform", "table"])
@pytest.mark.parametrize("bbar", ["uniform", "table", "uniform channels", "table channels"])
@pytest.mark.parametrize("reverse", [False, True])
def test_fixed_scan(rows: int, width: int, states: int, abar: str, bbar: str, reverse: bool) -> None:
    maker = Maker(7)
    output = make_scan(maker, rows, width, states, abar=abar, bbar=bbar, reverse=reverse)
    oracle = check(maker, output)
    assert isinstance(oracle.forms[-1], FixedScan), oracle.forms[-1]
    assert np.abs(oracle.tensors[output]).max() > 0


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("c", ["token", "token asymmetric", "tensor asymmetric"])
@pytest.mark.parametrize("others", ["tensor", "channel", "token", "table", None])
def test_fixed_scan_of_any_codes(bits: int, c: str, others: str | None) -> None:
    maker = Maker(8)
    delta = {"tensor": "unsigned", None: "tensor asymmetric"}.get(others, others)
    output = make_scan(maker, 15, 20, 4, bits=bits, c=c, b=others, u=others, delta=delta, h="one step")
    assert isinstance(check(maker, output).forms[-1], FixedScan)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("largest_u", [1e-3, 1e3])
def test_fixed_scan_that_saturates(bits: int, largest_u: float) -> None:
    """An input far beyond the state's range, and one far below, while the state's scale shrinks."""
    maker = Maker(9)
    output = make_scan(maker, 40, 24, 8, bits=bits, largest_u=largest_u)
    state = next(s for s in maker.bundle.sites.values() if isinstance(s, StateCodec))
    object.__setattr__(state, "step", np.resize(np.float32([1e-3, 8e-3, 1e-3, 0.5e-3]), 40))
    assert isinstance(check(maker, output).forms[-1], FixedScan)


def at_their_ends(maker: Maker) -> None:
    """States at their end, decays of one, a scale that shrinks eightfold and the largest input, all at once."""
    for name, values in list(maker.bundle.tensors.items()):
        if values.shape == (24, 8):
            maker.bundle.tensors[name] = np.full_like(values, -20)
    state = next(s for s in maker.bundle.sites.values() if isinstance(s, StateCodec))
    object.__setattr__(state, "step", np.float32(1e-4 * 0.125 ** np.minimum(np.arange(12), 6)))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fixed_scan_keeps_to_16_bits(bits: int) -> None:
    maker = Maker(10)
    output = make_scan(maker, 12, 24, 8, bits=bits, bbar="table" if bits == 2 else "uniform")
    at_their_ends(maker)
    form = check(maker, output).forms[-1]
    assert isinstance(form, FixedScan) and form.lift.max() == 3


FUSED = {"abar": None, "bbar": None, "read_quantized": False}


@pytest.mark.parametrize(("rows", "width", "states"), [(1, 1, 1), (9, 16, 2), (20, 33, 5), (26, 40, 16)])
@pytest.mark.parametrize("b", ["tensor", "token asymmetric", "token"])
@pytest.mark.parametrize("delta", ["unsigned", "channel", "token", "table"])
@pytest.mark.parametrize("reverse", [False, True])
def test_fused_scan(rows: int, width: int, states: int, b: str, delta: str, reverse: bool) -> None:
    maker = Maker(12)
    output = make_scan(maker, rows, width, states, b=b, c=b, delta=delta, reverse=reverse, **FUSED)
    oracle = check(maker, output)
    assert isinstance(oracle.forms[-1], FusedScan), oracle.forms[-1]
    assert np.abs(oracle.tensors[output]).max() > 0


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("u", ["channel", "token", "table", None])
@pytest.mark.parametrize("largest_u", [1e-3, 1.0, 1e3])
def test_fused_scan_of_any_codes(bits: int, u: str | None, largest_u: float) -> None:
    """An input far beyond the state's range, and one far below, while the state's scale shrinks and grows."""
    maker = Maker(13)
    output = make_scan(maker, 40, 20, 4, bits=bits, b="token asymmetric", u=u, largest_u=largest_u, **FUSED)
    state = next(s for s in maker.bundle.sites.values() if isinstance(s, StateCodec))
    object.__setattr__(state, "step", np.resize(np.float32([1e-3, 8e-3, 2.5e-3, 0.5e-3]), 40))
    form = check(maker, output).forms[-1]
    assert isinstance(form, FusedScan) and set(form.lift) == {0, 1, 2}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fused_scan_keeps_to_16_bits(bits: int) -> None:
    """The C++ sums wrap where the oracle's do not."""
    maker = Maker(14)
    output = make_scan(maker, 12, 24, 8, bits=bits, b="token", largest_u=1e3, **FUSED)
    at_their_ends(maker)
    form = check(maker, output).forms[-1]
    assert isinstance(form, FusedScan) and form.lift.max() == 2


@pytest.mark.parametrize(
    "options",
    [
        {"abar": None},
        {"bbar": None},
        {"abar": None, "bbar": "uniform channels"},
        {"abar": None, "bbar": "table channels", "h": None},
        {"abar": None, "bbar": None, "h": None},
        {"abar": None, "bbar": None, "b": None, "read_quantized": False},
        {"abar": None, "bbar": None, "c": "table", "read_quantized": False},
        {"abar": None, "bbar": None},
        {"h": "states"},
        {"h": "steps", "read_quantized": False},
        {"abar": "table", "bbar": "table", "h": "states"},
        {"abar": None, "u": None, "delta": None, "b": None, "c": "table"},
        {"abar": None, "u": "token", "delta": "token", "b": "channel", "c": "token", "reverse": True},
    ],
)
@pytest.mark.parametrize(("rows", "width", "states"), [(1, 1, 1), (14, 21, 5), (9, 32, 16)])
def test_float_scan(rows: int, width: int, states: int, options: dict) -> None:
    maker = Maker(10)
    output = make_scan(maker, rows, width, states, **options)
    assert isinstance(check(maker, output).forms[-1], FloatScan)


# --- whole programs


def small_network(seed: int = 11, rows: int = 17, width: int = 24) -> tuple[Maker, str]:
    maker = Maker(seed, size=10)
    output = make_scan(maker, rows, width, 6, c="token")
    maker.operation(
        ir.Linear(input=list(maker.tensors)[-2], weight=maker.site(weight(7, (width,), maker.rng))), rows, 7
    )
    tokens = maker.store()
    maker.operation(ir.Rows(), 1, 0)
    maker.operations[-1]["widths"] = {}
    maker.step(ir.Load(dst=0, tensor=tokens, row=rows // 2), 7)
    maker.step(ir.Load(dst=1, tensor=output, row=rows - 1), width)
    return maker, maker.store(0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_batch_on_any_threads(isa: str, threads: int) -> None:
    maker, output = small_network()
    for batch in range(1, 10):
        check(maker, output, isas=(isa,), threads=(threads,), batch=batch)


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 40), st.integers(1, 9), st.sampled_from([2, 4, 8]))
@settings(max_examples=20, deadline=None)
def test_random_scans(seed: int, rows: int, width: int, states: int, bits: int) -> None:
    maker = Maker(seed)
    check(maker, make_scan(maker, rows, width, states, bits=bits, largest_u=10.0 ** (seed % 5 - 2)))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_operations_that_run_together_and_those_that_do_not(threads: int, reverse: bool) -> None:
    """Linear layers follow each other tile by tile; a convolution and a load of one row wait for all rows."""
    rows, width = 41, 24
    maker = Maker(18)
    x = maker.random(rows, width, "token")
    for layer in range(3):
        for _ in range(2):
            maker.operation(ir.Linear(input=x, weight=maker.site(weight(width, (width,), maker.rng))), rows, width)
            maker.step(ir.Unary(op="silu", dst=1, src=0), width)
            x = maker.store(1, "token")
        w = maker.site(weight(width, (1, 4), maker.rng))
        kind = None if layer == 1 else "tensor"
        maker.operation(ir.Conv1d(input=x, weight=w, reverse=reverse), rows, width)
        maker.step(ir.Load(dst=1, tensor=x), width)
        maker.step(ir.Load(dst=2, tensor=x, row=rows - 1), width)
        maker.step(ir.Binary(op="add", dst=3, a=0, b=1), width)
        maker.step(ir.Binary(op="mul", dst=4, a=3, b=2), width)
        x = maker.store(4, kind)
    maker.operation(ir.Concat(parts=((x, 5, rows - 5), (x, 0, 5))), rows, width)
    check(maker, maker.store(), threads=(threads,), batch=4)


def test_what_runs_together_with_a_linear_of_tiles() -> None:
    """AMX takes more rows at a time than the other levels, and so does then everything that follows row by row."""
    rows, width = 70, 80
    maker = Maker(21)
    x, other = maker.random(rows, width, "token asymmetric"), maker.random(rows, width, "table")
    maker.operation(ir.Linear(input=x, weight=maker.site(weight(width, (width,), maker.rng))), rows, width)
    site = maker.quantizer("token", rows, width)
    divisor = maker.rng.uniform(0.5, 2, width).astype(np.float32)
    maker.bundle.rotations[site] = (maker.rng.normal(0, 0.2, (width, width)).astype(np.float32), divisor)
    codes, table = maker.store(kind="token"), maker.store(kind="table")
    rotated = maker.store(maker.step(ir.Rotate(dst=1, src=0, site=site), width))
    for name, size in [(table, width), (codes, 24), (codes, 100), (rotated, 24)]:
        maker.operation(ir.Linear(input=name, weight=maker.site(weight(size, (width,), maker.rng))), rows, size)
        maker.store(kind="tensor")
        maker.store()
    for name in (x, other):
        w = maker.site(weight(width, (1, 4), maker.rng))
        maker.operation(ir.Conv1d(input=name, weight=w, bias=maker.parameter(width)), rows, width)
        maker.step(ir.Load(dst=1, tensor=codes), width)
        maker.step(ir.Binary(op="add", dst=2, a=0, b=1), width)
        output = maker.store(2)
    check(maker, output, threads=(1, 2, 3), batch=3)


def test_a_row_of_what_is_being_written() -> None:
    maker = Maker(19)
    maker.random(5, 8)
    maker.operation(ir.Concat(parts=((maker.random(5, 8), 0, 5),)), 5, 8)
    own = maker.store()
    maker.step(ir.Load(dst=1, tensor=own, row=4), 8)
    with pytest.raises(VisqError, match="not all written"):
        CpuEngine(maker.program(maker.store(1)), maker.bundle)


def test_output_of_codes_is_decoded() -> None:
    maker = Maker(12)
    check(maker, maker.random(3, 20, "token"))


def test_runs_again_give_the_same() -> None:
    maker, output = small_network()
    images = maker.images(5)
    engine = CpuEngine(maker.program(output), maker.bundle, threads=2)
    first = engine(images)
    for _ in range(20):
        assert np.array_equal(engine(images), first)
    engine.enable_profile()
    engine(images)
    profile = engine.profile()
    assert set(profile) >= {"linear", "linear body", "scan", "scan body"}
    assert all(seconds > 0 for seconds in profile.values())


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 8, 8), np.float64),
        np.zeros((1, 3, 8, 9), np.float32),
        np.zeros((3, 8, 8), np.float32),
        np.full((1, 3, 8, 8), np.nan, np.float32),
        [[1.0]],
    ],
)
def test_images_that_are_none(images: object) -> None:
    maker = Maker(13)
    output = maker.random(2, 3)
    engine = CpuEngine(maker.program(output), maker.bundle, threads=1)
    with pytest.raises(VisqError, match="images"):
        engine(images)  # type: ignore[arg-type]


def test_no_images() -> None:
    maker = Maker(14)
    engine = CpuEngine(maker.program(maker.random(2, 3)), maker.bundle, threads=2)
    assert engine(np.zeros((0, 3, 8, 8), np.float32)).shape == (0, 3)


def test_an_unknown_instruction_set() -> None:
    maker = Maker(15)
    with pytest.raises(VisqError, match="avx9"):
        CpuEngine(maker.program(maker.random(2, 3)), maker.bundle, isa="avx9")


def test_parameters_that_do_not_fit() -> None:
    maker = Maker(16)
    x = maker.random(4, 8, "token")
    maker.bundle.sites[maker.tensors[x].site] = maker.bundle.sites[maker.quantizer("token", 5, 8)]
    with pytest.raises(VisqError):
        CpuEngine(maker.program(x), maker.bundle)


def test_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker(17)
    program = maker.program(maker.random(2, 3))
    monkeypatch.setenv("VISQ_ISA", "scalar")
    assert CpuEngine(program, maker.bundle).isa == "scalar"
    monkeypatch.setenv("VISQ_ISA", "nothing")
    with pytest.raises(VisqError, match="VISQ_ISA=nothing"):
        CpuEngine(program, maker.bundle)


@pytest.mark.skipif(not has_engine_isa(EMULATED), reason="the emulation needs AVX-512 VNNI")
def test_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default where it is there, one clear error where it is not; the emulation runs only when asked for."""
    monkeypatch.setenv("VISQ_ISA", "amx")
    if has_engine_isa("amx"):
        assert engine_isa() == "amx"
    else:
        with pytest.raises(VisqError, match=r"^VISQ_ISA=amx is not available here; available: avx512vnni, avx512,"):
            engine_isa()
    assert EMULATED not in engine_isas()
    monkeypatch.setenv("VISQ_ISA", EMULATED)
    assert engine_isa() == EMULATED
    monkeypatch.delenv("VISQ_ISA")
    assert engine_isa() == ("amx" if has_engine_isa("amx") else "avx512vnni")


def test_the_engine_does_not_import_torch() -> None:
    code = "import sys, visq.runtime.cpu.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_scan_alone_takes_delta_in_float32() -> None:
    """What the simulation runs (`visq.ops.fixed_scan`, Engine::run_alone): delta and u are float32 tensors there."""
    from tests.ops.test_fixed_scan import Case

    case = Case()
    assert np.array_equal(case.run("cpp"), case.run("naive"))
