"""Every source, form and row instruction of the CUDA engine, over awkward shapes. `test_same_programs` has more."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.cuda.agreement import check, check_program
from tests.runtime.programs import QUANTIZERS, Maker, weight
from tests.runtime.scan_programs import FUSED, at_their_ends, make_scan, start_scan
from visq.integer import operations as ir
from visq.integer.arithmetic import gelu, gelu_tanh, relu, sigmoid, silu, softplus
from visq.integer.codecs import StateCodec
from visq.integer.fixed_scan import FixedScan
from visq.integer.float_scan import FloatScan
from visq.integer.forms import FloatConv2d, FloatLinear, IntegerConv2d, IntegerLinear, WideLinear
from visq.integer.fused_scan import FusedScan
from visq.integer.instructions import ELEMENTWISE
from visq.integer.ladder_scan import LadderScan
from visq.integer.operations import Constant
from visq.runtime.cuda import phases, sources
from visq.runtime.cuda.engine import CudaEngine
from visq.runtime.cuda.instructions import EXPRESSIONS
from visq.runtime.cuda.products import pack_nibbles
from visq.runtime.oracle import Oracle


def test_every_row_instruction_has_an_expression() -> None:
    assert EXPRESSIONS.keys() == ELEMENTWISE.keys()


def test_every_kind_of_codes() -> None:
    """Codes are made and read in either order of tokens, and rounded in registers."""
    rows, width = 13, 37
    maker = Maker(1)
    x = maker.random(rows, width)
    names = []
    for index, kind in enumerate(QUANTIZERS):
        if index % 6 == 0:
            maker.operation(ir.Concat(parts=((x, 0, rows),)), rows, width)
        names.append(maker.store(kind=kind, reverse=index % 2 == 1))
        site = maker.quantizer(kind, rows, width, top=2.0)
        maker.store(maker.step(ir.Round(dst=maker.register(), src=0, site=site, reverse=index % 2 == 0), width))
    for start in range(0, len(names), 6):
        maker.operation(ir.Rows(), rows, 0)
        maker.operations[-1]["widths"] = {}
        for index, name in enumerate(names[start : start + 6]):
            maker.step(ir.Load(dst=index, tensor=name), width)
            output = maker.store(index)
    check(maker, output)


def test_row_instructions() -> None:
    """Slices, constants, norms, a rotation that needs a norm, and a value read back from a store of the same body."""
    rows, width, part = 5, 45, 17
    maker = Maker(2)
    x, codes = maker.random(rows, width), maker.random(rows, width, "token asymmetric")
    maker.operation(ir.Rows(), rows, 0)
    maker.operations[-1]["widths"] = {}
    vector, matrix = Constant(name=maker.parameter(1, 1, width)), Constant(name=maker.parameter(rows, width))
    norms = [Constant(name=maker.parameter(size)) for size in (width, part, part)]
    site = maker.quantizer("token", rows, width)
    divisor = maker.rng.uniform(0.5, 2, width).astype(np.float32)
    maker.bundle.rotations[site] = (maker.rng.normal(0, 0.2, (width, width)).astype(np.float32), divisor)
    add = maker.step
    add(ir.Load(dst=0, tensor=x), width)
    add(ir.Load(dst=1, tensor=codes, row=rows - 1), width)
    add(ir.Binary(op="add", dst=2, a=0, b=1), width)
    add(ir.WithConstant(op="add_constant", dst=3, src=2, constant=vector), width)
    add(ir.WithConstant(op="mul_constant", dst=4, src=3, constant=matrix), width)
    add(ir.WithScalar(dst=5, src=4, value=0.3), width)
    add(ir.Slice(dst=6, src=5, offset=7, width=31), 31)
    add(ir.Slice(dst=7, src=6, offset=3, width=part), part)
    add(ir.RmsNorm(dst=8, src=5, weight=norms[0], eps=1e-5), width)
    add(ir.LayerNorm(dst=9, src=7, weight=norms[1], bias=norms[2], eps=1e-5), part)
    add(ir.Rotate(dst=10, src=8, site=site), width)
    own = maker.store(6, "channel")
    add(ir.Load(dst=11, tensor=own), 31)
    add(ir.Binary(op="mul", dst=12, a=11, b=6), 31)
    for register, kind in [(10, "token"), (9, None), (9, "table"), (12, None), (8, "channel asymmetric")]:
        output = maker.store(register, kind)
    check(maker, output, batch=2)


@pytest.mark.parametrize(("width", "order"), [(40, 5), (48, 12)])
def test_rotations_by_sums_and_differences(width: int, order: int) -> None:
    rows = 3
    maker = Maker(width)
    x = maker.random(rows, width)
    maker.operation(ir.Concat(parts=((x, 0, rows),)), rows, width)
    site = maker.quantizer("token", rows, width)
    divisor = maker.rng.uniform(0.5, 2, width).astype(np.float32)
    maker.bundle.rotations[site] = (maker.rng.normal(0, 0.2, (order, order)).astype(np.float32), divisor)
    maker.store(maker.step(ir.Rotate(dst=1, src=0, site=site), width), "token")
    check(maker, maker.store(1))


def test_functions_of_any_number() -> None:
    """Ties, both ends of the range, infinities and NaN."""
    values = np.array([0, -0.0, 0.5, -0.5, 1.5, 3e-39, 88, -88, 126, -127, 13, -13, 6e4, -6e4], np.float32)
    maker = Maker(size=16, channels=1)
    image = maker.rng.normal(0, 30, (1, 1, 16, 16)).astype(np.float32)
    image.reshape(-1)[: values.size] = values
    maker.operation(ir.Patches(patch=16, stride=1), 1, 256)
    large = maker.step(ir.WithScalar(dst=1, src=0, value=3e38), 256)
    infinite = maker.step(ir.WithScalar(dst=2, src=large, value=3e38), 256)
    maker.step(ir.Unary(op="neg", dst=3, src=infinite), 256)
    nan = maker.step(ir.Binary(op="add", dst=4, a=infinite, b=3), 256)
    found = {}
    functions = {"silu": silu, "softplus": softplus, "gelu": gelu, "neg": np.negative}
    for op, function in {**functions, "gelu_tanh": gelu_tanh, "sigmoid": sigmoid, "relu": relu}.items():
        for register in (0, large, infinite, nan):
            result = maker.step(ir.Unary(op=op, dst=maker.register(), src=register), 256)
            found[maker.store(result)] = (function, register)
    codes = [maker.store(register, "tensor asymmetric") for register in (infinite, nan)]
    program = maker.program(codes[0])
    engine = CudaEngine(program, maker.bundle, separate_memory=True)
    engine(image)
    with np.errstate(all="ignore"):
        oracle = Oracle(program, maker.bundle)
        oracle(image)
        x = image.reshape(1, -1)
        top = x * np.float32(3e38)
        inputs = {0: x, large: top, infinite: top * np.float32(3e38)}
        inputs[nan] = inputs[infinite] + -inputs[infinite]
        assert np.isnan(inputs[nan]).any() and np.isinf(inputs[infinite]).any()
        for name, (function, register) in found.items():
            assert np.array_equal(engine.tensors[name], function(inputs[register]), equal_nan=True), name
    for name in codes:
        assert np.array_equal(engine.tensors[name], oracle.tensors[name])


@pytest.mark.parametrize(
    ("kind", "rows", "K", "N", "bits", "form"),
    [
        ("token asymmetric", 5, 12, 44, 8, IntegerLinear),
        ("tensor", 17, 65, 16, 4, IntegerLinear),
        pytest.param("token", 33, 130, 70, 4, IntegerLinear, marks=pytest.mark.slow),
        ("groups asymmetric", 5, 70, 17, 8, WideLinear),
        ("token twin table", 5, 33, 17, 8, WideLinear),
        ("channel", 3, 9, 5, 8, FloatLinear),
    ],
)
def test_linear(kind: str, rows: int, K: int, N: int, bits: int, form: type) -> None:
    maker = Maker(K + N)
    x = maker.random(rows, K, kind, reverse=True)
    w = maker.site(weight(N, (K,), maker.rng, bits=bits))
    maker.operation(ir.Linear(input=x, weight=w, bias=maker.parameter(N)), rows, N)
    maker.step(ir.Slice(dst=1, src=0, offset=N // 3, width=N - N // 3), N - N // 3)
    maker.store(1, kind="tensor", top=20)
    oracle = check(maker, maker.store())
    assert isinstance(oracle.forms[-1], form)


def test_packed_weights_of_4_bits_take_half_a_byte() -> None:
    found = {}
    for bits in (4, 5):
        maker = Maker(9)
        x = maker.random(2, 192, "tensor")
        maker.operation(ir.Linear(input=x, weight=maker.site(weight(64, (192,), maker.rng, bits=bits))), 2, 64)
        found[bits] = CudaEngine(maker.program(maker.store()), maker.bundle).parameter_bytes
    assert found[5] - found[4] == 64 * 192 / 2
    packed = pack_nibbles(np.arange(-8, 8, dtype=np.int8).reshape(1, 16), 16)
    assert packed.tolist() == [[(low & 15 | high << 4) for low, high in zip(range(-8, 0), range(8), strict=True)]]


@pytest.mark.parametrize("kind", ["token", pytest.param("channel", marks=pytest.mark.slow)])
def test_sequences_one_after_the_other(kind: str) -> None:
    """Token scales are those of each sequence; convolutions and scans begin anew with each."""
    length, width = 4, 6
    maker = Maker(4)
    x = maker.random(2 * length, width)
    maker.operation(ir.Concat(parts=((x, 0, 2 * length),)), 2 * length, width)
    name = maker.store()
    site = maker.quantizer(kind, length, width)
    decl = maker.tensors[name]
    maker.tensors[name] = decl.model_copy(update={"site": site, "length": length})
    maker.store(maker.step(ir.Round(dst=1, src=0, site=site, length=length), width))
    w = maker.site(weight(width, (1, 4), maker.rng))
    maker.operation(ir.Conv1d(input=name, weight=w, ahead=1, length=length), 2 * length, width)
    maker.store()
    for options in (FUSED, {"h": "states"}):
        start_scan(maker, length, width, 2, **options)
        scan = maker.operations.pop()
        inputs = {}
        for letter in ("u", "delta", "B", "C"):
            tensor = getattr(scan["source"], letter)
            inputs[letter] = tensor
            found = maker.tensors[tensor]
            size = found.width
            maker.operation(ir.Concat(parts=((tensor, 0, length),) * 2), 2 * length, size)
            twice = f"twice {tensor}"
            maker.tensors[twice] = found.model_copy(update={"rows": 2 * length, "length": length})
            maker.operations[-1]["body"].append(ir.Store(src=0, tensor=twice))
            inputs[letter] = twice
        source = scan["source"].model_copy(update={**inputs, "length": length})
        maker.operation(source, 2 * length, width)
        output = maker.store()
    oracle = check(maker, output)
    assert np.array_equal(oracle.tensors[output][:length], oracle.tensors[output][length:])


def test_the_engine_knows_every_field_of_what_it_runs() -> None:
    """A field that someone adds must not be ignored: support it, or refuse it, and add it here."""
    known = {
        ir.Patches: "kind patch stride padding input",
        ir.Linear: "kind input weight bias",
        ir.Conv1d: "kind input weight bias reverse ahead length",
        ir.Conv2d: "kind input weight bias kernel padding",
        ir.DenseConv2d: "kind input weight bias kernel stride padding",
        ir.PixelShuffle: "kind input scale",
        ir.Bilinear: "kind input like",
        ir.AveragePool: "kind input height width",
        ir.Transpose: "kind input height width",
        ir.Mean: "kind input",
        ir.EnterWindows: "kind input side window",
        ir.LeaveWindows: "kind input side window",
        ir.Sample: "kind input height width row column by_columns",
        ir.MergeSamples: "kind inputs height width",
        ir.Attention: "kind q k v heads length scores probs",
        ir.Scan: "kind u delta A B C abar bbar h reverse length",
        ir.Concat: "kind parts",
        ir.Rows: "kind",
        ir.Append: "op dst a b",
        ir.Turn: "op dst src",
        ir.Round: "op dst src site reverse length",
        ir.Load: "op dst tensor row",
        ir.Rotate: "op dst src site",
        ir.TensorDecl: "rows width height site reverse length",
        ir.Constant: "name functions grid",
    }
    assert {kind: set(kind.model_fields) for kind in known} == {
        kind: set(names.split()) for kind, names in known.items()
    }
    assert {*sources._SOURCES, ir.Scan, ir.Attention} == {kind for kind in known if "kind" in kind.model_fields}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["channel asymmetric", "token"])
def test_convolution(kind: str, reverse: bool) -> None:
    rows, width, taps = 6, 19, 4
    maker = Maker(rows)
    x = maker.random(rows, width, kind, reverse=reverse)
    w = maker.site(weight(width, (1, taps), maker.rng))
    maker.operation(ir.Conv1d(input=x, weight=w, bias=maker.parameter(width), reverse=reverse), rows, width)
    check(maker, maker.store(), batch=2)


@pytest.mark.parametrize(("kind", "form"), [("channel asymmetric", IntegerConv2d), ("table", FloatConv2d)])
def test_maps(kind: str, form: type) -> None:
    """A convolution over a map, windows of a map, a transposed map, the mean of rows."""
    side, width = 4, 18
    maker = Maker(5)
    x = maker.random(side * side, width, kind)
    w = maker.site(weight(width, (1, 3, 3), maker.rng))
    maker.operation(ir.Conv2d(input=x, weight=w, kernel=3, padding=1), side * side, width)
    convolved = maker.store()
    maker.operation(ir.Patches(patch=3, stride=2, padding=1, input=x), 4, width * 9)
    maker.store(kind="tensor")
    maker.operation(ir.Transpose(input=x, height=2, width=8), side * side, width)
    maker.store()
    maker.operation(ir.Mean(input=convolved), 1, width)
    oracle = check(maker, maker.store(), batch=2)
    assert any(isinstance(found, form) for found in oracle.forms)


@pytest.mark.parametrize(("kind", "form"), [("tensor asymmetric", IntegerLinear), ("token", FloatLinear)])
def test_an_image_from_an_image(kind: str, form: type) -> None:
    """A dense convolution, numbers of the network's code and a pixel shuffle; neither image nor map is square."""
    maker = Maker(7)
    maker.operation(ir.Patches(patch=3, stride=2, padding=1), 12, 27)
    windows = maker.store(kind=kind)
    w = maker.site(weight(8, (27, 3, 2), maker.rng))
    around = {"kernel": (3, 2), "stride": (1, 2), "padding": (1, 1)}
    maker.operation(ir.DenseConv2d(input=windows, weight=w, bias=maker.parameter(8), **around), 9, 8)
    values = tuple(maker.rng.normal(size=8).tolist())
    maker.step(ir.AddValues(dst=1, src=0, values=values), 8)
    mixed = maker.store(1, "tensor asymmetric", top=10)
    maker.operation(ir.PixelShuffle(input=mixed, scale=2), 36, 2)
    output = maker.store(kind="token", top=10)
    for name, height in ((windows, 3), (mixed, 3), (output, 6)):
        maker.tensors[name] = maker.tensors[name].model_copy(update={"height": height})
    maker.size = (5, 8)  # type: ignore[assignment]
    program = maker.program(output).model_copy(update={"output_map": True})
    assert program.output_shape == (2, 6, 6)
    images = maker.rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
    oracle = check_program(program, maker.bundle, images)
    assert isinstance(oracle.forms[1], form)


@pytest.mark.parametrize(
    ("rows", "width", "states", "options", "form"),
    [
        (5, 18, 4, {}, FixedScan),
        (9, 3, 1, {"abar": "table", "bbar": "table channels", "reverse": True}, FixedScan),
        (6, 5, 3, {"bits": 4, "c": "token asymmetric", "u": "table", "bbar": "uniform channels"}, FixedScan),
        (5, 18, 5, {**FUSED, "reverse": True}, FusedScan),
        (8, 3, 16, {**FUSED, "b": "token asymmetric", "c": "token", "delta": "token", "bits": 4}, FusedScan),
        (5, 3, 24, {**FUSED, "ladder": True}, LadderScan),
        (3, 3, 2, {"h": "states"}, FloatScan),
        (3, 5, 3, {"abar": "table", "h": None, "u": None, "delta": None, "b": None, "reverse": True}, FloatScan),
    ],
)
def test_scan(rows: int, width: int, states: int, options: dict, form: type) -> None:
    maker = Maker(rows + width)
    output = make_scan(maker, rows, width, states, **options)
    oracle = check(maker, output)
    assert isinstance(oracle.forms[-1], form)
    assert np.abs(oracle.tensors[output]).max() > 0


@pytest.mark.parametrize(
    ("rows", "width", "states", "options"),
    [
        (5, 35, 13, {**FUSED, "reverse": True, "bits": 3}),
        (4, 3, 1, {**FUSED, "b": "token asymmetric", "delta": "table"}),
        (6, 33, 32, {**FUSED, "ladder": True, "c": "token asymmetric"}),
        (3, 5, 6, {**FUSED, "ladder": True, "reverse": True}),
    ],
)
def test_scan_with_all_states_in_a_lane(
    rows: int, width: int, states: int, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many images would have it."""
    monkeypatch.setattr(phases, "FULL", 0)
    maker = Maker(rows + width)
    output = make_scan(maker, rows, width, states, **options)
    assert np.abs(check(maker, output).tensors[output]).max() > 0


@pytest.mark.parametrize("full", [0, phases.FULL])
def test_scan_whose_scales_shrink_and_grow(full: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "FULL", full)
    for ladder in (False, True):
        maker = Maker(13)
        make_scan(maker, 9, 20, 9, b="token asymmetric", u="token", largest_u=1e3, ladder=ladder, **FUSED)
        state = next(s for s in maker.bundle.sites.values() if isinstance(s, StateCodec))
        object.__setattr__(state, "step", np.resize(np.float32([1e-3, 8e-3, 2.5e-3, 0.5e-3]), 9))
        form = check(maker, maker.store()).forms[-1]
        assert isinstance(form, LadderScan if ladder else FusedScan) and set(form.lift) == {0, 1, 2}


def test_scan_at_the_ends_of_16_bits() -> None:
    maker = Maker(3)
    output = make_scan(maker, 12, 24, 8, **FUSED, largest_u=1e3)
    at_their_ends(maker)
    oracle = check(maker, output)
    assert isinstance(oracle.forms[-1], FusedScan)


@pytest.mark.parametrize(("kind", "side", "window"), [("token asymmetric", 5, 2), ("table", 3, 4)])
def test_windows_and_back(kind: str, side: int, window: int) -> None:
    """Windows that reach beyond the map hold zeros there, whatever the codes' zero point is."""
    maker = Maker(side)
    x = maker.random(side * side, 17, kind)
    across = -(-side // window)
    maker.operation(ir.EnterWindows(input=x, side=side, window=window), across**2 * window**2, 17)
    inside = maker.store()
    maker.operation(ir.LeaveWindows(input=inside, side=side, window=window), side * side, 17)
    check(maker, maker.store(), batch=2)
