"""Checks the powers of a decay ladder against float64, by the bound of docs/integer-semantics.md."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visq.integer.arithmetic import exp2, to_int16
from visq.integer.ladder_scan import powers

U = 2.0**-16


def rungs(x: np.ndarray) -> np.ndarray:
    """Returns 2^x in Q15 as the scan computes it. x [C] float32."""
    return to_int16(exp2(x) * np.float32(32768))


def bound(n: int, ratio: float, unit: float) -> float:
    """Returns the page's bound of the error of r^(n + 1) times `ratio`, in units of 1 / `unit`; n counts from 0."""
    products = 2 + (n // 2 % 4 + 1) // 2 + n // 8
    return ratio * ((n + 1) * 2 * U + n * U) + products * 0.5 / unit


@given(st.floats(-20, 0, width=32), st.integers(1, 64), st.floats(0.1, 8))
@settings(max_examples=300, deadline=None)
def test_powers_keep_the_bound(x: float, states: int, ratio: float) -> None:
    lift = int(np.clip(np.ceil(np.log2(ratio)) - 1, 0, 2))
    unit = 2.0 ** (14 - lift)
    coded = int(np.rint(min(ratio * unit, 32767)))
    found = powers(rungs(np.float32([x])), coded, states)[0] / unit
    exact = np.exp2(float(np.float32(x)) * np.arange(1, states + 1)) * ratio
    limit = [bound(n, ratio, unit) for n in range(states)]
    assert (np.abs(found - exact) <= limit).all()
    assert (found >= 0).all() and (found * unit <= 32767).all()


@pytest.mark.parametrize("states", [1, 3, 5, 8, 16, 24])
def test_a_power_does_not_depend_on_how_many_there_are(states: int) -> None:
    r = rungs(-np.geomspace(1e-4, 8, 50).astype(np.float32))
    assert np.array_equal(powers(r, 20000, states), powers(r, 20000, 40)[:, :states])


def test_powers_descend() -> None:
    found = powers(rungs(-np.geomspace(1e-3, 8, 200).astype(np.float32)), 16384, 16)
    assert (np.diff(found, axis=1) <= 0).all()


def test_the_ratio_enters_once() -> None:
    """Twice the ratio is twice every power, up to the roundings."""
    r = rungs(-np.geomspace(1e-3, 8, 200).astype(np.float32))
    once, twice = powers(r, 8192, 24), powers(r, 16384, 24)
    assert np.abs(twice - 2 * once).max() <= 6
