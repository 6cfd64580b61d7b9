"""Checks that the engine's functions stay within the errors that docs/integer-semantics.md states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from visq.integer import arithmetic


def test_exp2_is_accurate_over_its_range() -> None:
    x = np.linspace(-126, 126, 400_001, dtype=np.float32)
    assert np.abs(arithmetic.exp2(x) / 2.0 ** x.astype(np.float64) - 1).max() < 2e-7
    assert arithmetic.exp2(np.array([0, 1, -3], np.float32)).tolist() == [1, 2, 0.125]


def test_exp2_clamps() -> None:
    assert arithmetic.exp2(np.array([-1e9, 1e9], np.float32)).tolist() == [2.0**-126, 2.0**126]


def test_silu_and_softplus_are_accurate() -> None:
    x = np.linspace(-30, 30, 200_001, dtype=np.float32)
    exact = x.astype(np.float64)
    assert np.abs(arithmetic.silu(x) - exact / (1 + np.exp(-exact))).max() < 2e-6
    softplus = np.maximum(exact, 0) + np.log1p(np.exp(-np.abs(exact)))
    assert (np.abs(arithmetic.softplus(x) - softplus) / softplus).max() < 4e-6


def test_gelu_is_accurate() -> None:
    x = np.linspace(-40, 40, 400_001, dtype=np.float32)
    exact = F.gelu(torch.from_numpy(x).double()).numpy()
    assert (np.abs(arithmetic.gelu(x) - exact) / np.maximum(np.abs(x), 1)).max() < 1e-6
    assert np.abs(arithmetic.gelu(x) - exact)[np.abs(x) < 8].max() < 1e-6


def test_gelu_of_what_is_no_number() -> None:
    with np.errstate(invalid="ignore"):
        nan, infinite, least = arithmetic.gelu(np.array([np.nan, np.inf, -np.inf], np.float32))
    assert np.isnan(nan) and infinite == np.inf and abs(least) < 1e-30


@pytest.mark.parametrize("unit", [65536, 65280, 64000, 40000])
def test_exp2_fixed_is_within_its_stated_error_at_every_argument(unit: int) -> None:
    f = np.arange(65536)
    coefficients = arithmetic.exp2_coefficients(unit)
    found = arithmetic.exp2_fixed(f, coefficients)
    assert np.abs(found - unit * 2.0 ** (-f / 65536)).max() <= 6
    assert found[0] == min(unit, 65535) == found.max()


@given(st.integers(-32768, 32767), st.integers(-32768, 32767))
def test_high_product_is_cut_off(a: int, b: int) -> None:
    assert arithmetic.high_product(np.int64(a), np.int64(b)) == a * b // 65536


@given(st.integers(-32768, 32767), st.integers(-32768, 32767))
def test_mulhrs_rounds_half_up(a: int, b: int) -> None:
    assert arithmetic.mulhrs(np.int64(a), np.int64(b)) == int(np.floor(a * b / 32768 + 0.5))


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 50)), elements=st.floats(-100, 100, width=32)))
def test_row_sum_and_rms_norm_are_sums(x: np.ndarray) -> None:
    exact = x.astype(np.float64)
    np.testing.assert_allclose(arithmetic.row_sum(x), exact.sum(-1, keepdims=True), atol=2e-3)
    norm = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        arithmetic.rms_norm(x, np.ones(x.shape[1], np.float32), 1e-5), norm, rtol=1e-4, atol=1e-5
    )


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 50)), elements=st.floats(-100, 100, width=32)))
def test_layer_norm_and_mean_are_what_they_are(x: np.ndarray) -> None:
    weight, bias = np.linspace(-1, 2, x.shape[1], dtype=np.float32), np.linspace(3, 1, x.shape[1], dtype=np.float32)
    exact = F.layer_norm(torch.from_numpy(x).double(), (x.shape[1],), eps=1e-3).numpy() * weight + bias
    found = arithmetic.layer_norm(x, weight, bias, 1e-3)
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(arithmetic.mean(x), x.astype(np.float64).mean(0, keepdims=True), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5)])
def test_product_is_a_matrix_product(shape: tuple[int, int, int]) -> None:
    rows, inner, outer = shape
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((rows, inner)).astype(np.float32), rng.standard_normal((outer, inner)).astype(np.float32)
    np.testing.assert_allclose(arithmetic.product(x, w), x @ w.T, rtol=1e-5, atol=1e-5)


def test_to_int16_saturates_and_rounds_half_to_even() -> None:
    x = np.array([0.5, 1.5, -0.5, -2.5, 1e9, -1e9], np.float32)
    assert arithmetic.to_int16(x).tolist() == [0, 2, 0, -2, 32767, -32768]
