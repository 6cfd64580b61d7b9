"""Checks that scans of the C++ engine have the oracle's bits in every form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.agreement import check
from tests.runtime.programs import Maker
from tests.runtime.scan_programs import FUSED, at_their_ends, make_scan
from visq.integer.codecs import StateCodec
from visq.integer.fixed_scan import FixedScan
from visq.integer.float_scan import FloatScan
from visq.integer.fused_scan import FusedScan
from visq.integer.ladder_scan import LadderScan
from visq.native.extension import available

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")


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
    """The input is far above or far below the state's range, while the state's scale shrinks."""
    maker = Maker(9)
    output = make_scan(maker, 40, 24, 8, bits=bits, largest_u=largest_u)
    state = next(s for s in maker.bundle.sites.values() if isinstance(s, StateCodec))
    object.__setattr__(state, "step", np.resize(np.float32([1e-3, 8e-3, 1e-3, 0.5e-3]), 40))
    assert isinstance(check(maker, output).forms[-1], FixedScan)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fixed_scan_keeps_to_16_bits(bits: int) -> None:
    maker = Maker(10)
    output = make_scan(maker, 12, 24, 8, bits=bits, bbar="table" if bits == 2 else "uniform")
    at_their_ends(maker)
    form = check(maker, output).forms[-1]
    assert isinstance(form, FixedScan) and form.lift.max() == 3


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
    """The input is far above, inside or far below the state's range, while the state's scale shrinks and grows."""
    maker = Maker(13)
    output = make_scan(maker, 40, 20, 4, bits=bits, b="token asymmetric", u=u, largest_u=largest_u, **FUSED)
    state = next(s for s in maker.bundle.sites.values() if isinstance(s, StateCodec))
    object.__setattr__(state, "step", np.resize(np.float32([1e-3, 8e-3, 2.5e-3, 0.5e-3]), 40))
    form = check(maker, output).forms[-1]
    assert isinstance(form, FusedScan) and set(form.lift) == {0, 1, 2}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fused_scan_keeps_to_16_bits(bits: int) -> None:
    """An overflow would show: sums wrap at 16 bits in C++, but not in the oracle."""
    maker = Maker(14)
    output = make_scan(maker, 12, 24, 8, bits=bits, b="token", largest_u=1e3, **FUSED)
    at_their_ends(maker)
    form = check(maker, output).forms[-1]
    assert isinstance(form, FusedScan) and form.lift.max() == 2


@pytest.mark.parametrize(("rows", "width", "states"), [(1, 1, 1), (9, 16, 3), (20, 33, 5), (26, 40, 16), (7, 17, 24)])
@pytest.mark.parametrize("delta", ["unsigned", "channel", "token", "table", None])
@pytest.mark.parametrize("reverse", [False, True])
def test_ladder_scan(rows: int, width: int, states: int, delta: str | None, reverse: bool) -> None:
    maker = Maker(15)
    options = {"b": "token", "c": "token asymmetric", "delta": delta, "reverse": reverse, "ladder": True}
    oracle = check(maker, output := make_scan(maker, rows, width, states, **options, **FUSED))
    expected = FloatScan if delta is None else LadderScan
    assert isinstance(oracle.forms[-1], expected), oracle.forms[-1]
    assert np.abs(oracle.tensors[output]).max() > 0


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("largest_u", [1e-3, 1.0, 1e3])
def test_ladder_scan_that_saturates(bits: int, largest_u: float) -> None:
    """The input is far above, inside or far below the state's range, while the state's scale shrinks and grows."""
    maker = Maker(16)
    make_scan(maker, 40, 20, 13, bits=bits, b="token asymmetric", largest_u=largest_u, ladder=True, **FUSED)
    state = next(s for s in maker.bundle.sites.values() if isinstance(s, StateCodec))
    object.__setattr__(state, "step", np.resize(np.float32([1e-3, 8e-3, 2.5e-3, 0.5e-3]), 40))
    form = check(maker, maker.store()).forms[-1]
    assert isinstance(form, LadderScan) and set(form.lift) == {0, 1, 2}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ladder_scan_keeps_to_16_bits(bits: int) -> None:
    """An overflow would show: sums wrap at 16 bits in C++, but not in the oracle."""
    maker = Maker(14)
    output = make_scan(maker, 12, 24, 8, bits=bits, b="token", largest_u=1e3, ladder=True, **FUSED)
    at_their_ends(maker)
    form = check(maker, output).forms[-1]
    assert isinstance(form, LadderScan) and form.lift.max() == 2 and form.ratio.max() == 32767


def test_a_ladder_with_codes_of_abar_is_a_fixed_scan() -> None:
    maker = Maker(7)
    assert isinstance(check(maker, make_scan(maker, 9, 20, 5, ladder=True)).forms[-1], FixedScan)


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


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 40), st.integers(1, 9), st.sampled_from([2, 4, 8]))
@settings(max_examples=20, deadline=None)
def test_random_scans(seed: int, rows: int, width: int, states: int, bits: int) -> None:
    maker = Maker(seed)
    check(maker, make_scan(maker, rows, width, states, bits=bits, largest_u=10.0 ** (seed % 5 - 2)))


def test_a_scan_alone_takes_delta_in_float32() -> None:
    """The simulation runs a single scan (`visq.ops.fixed_scan`, Engine::run_single) with delta and u in float32."""
    from tests.ops.test_fixed_scan import Case

    case = Case()
    assert np.array_equal(case.run("cpp"), case.run("naive"))
