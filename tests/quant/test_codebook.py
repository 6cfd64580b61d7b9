"""Codebooks: ascending tables that fit the bits; encode, decode and simulate agree; the search finds the best fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visq.errors import VisqError
from visq.integer.spec import Named, Spec
from visq.quant.codebook import CODEBOOKS, layouts
from visq.quant.codebook_search import Distribution, best, fits
from visq.quant.estimators import make_estimator
from visq.quant.histogram import float_counts, weighted_quantile, weighted_values
from visq.quant.quantizer import Quantizer

TABLES = ("power", "two_segment", "twin", "log2")
ALL = (*TABLES, "kmeans")


def long_tailed(n: int = 4000, seed: int = 0) -> Tensor:
    """Peaked at 0 with heavy tails, like Bbar."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).pow(5)


def tables(name: str, bits: int, signed: bool) -> list[Tensor]:
    return [table for _, table in layouts(Named(name=name), bits, signed)]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", ["uniform", *TABLES])
def test_tables_are_ascending_and_fit_the_bits(name: str, bits: int, signed: bool) -> None:
    if CODEBOOKS[name].signed_only and not signed:
        pytest.skip("for signed tensors")
    found = tables(name, bits, signed)
    assert found
    for table in found:
        assert 2**bits - 1 <= table.numel() <= 2**bits
        assert (table.diff() >= 0).all()
        assert table[-1] == 1
        assert 0 in table
        if not signed:
            assert table[0] == 0


def test_layouts_are_what_their_equations_say() -> None:
    (_, power), *_ = layouts(Named(name="power", p=0.5), 4, True)
    torch.testing.assert_close(power[7:], (torch.arange(8) / 7).square())
    torch.testing.assert_close(power, -power.flip(0))
    (_, segments), *_ = layouts(Named(name="two_segment", shift=2, dense=0.5), 4, False)
    codes = torch.tensor([*range(9), 12, 16, 20, 24, 28, 32, 36], dtype=torch.float)  # D = 8 = round(15 / 2)
    torch.testing.assert_close(segments * 36, codes)
    (_, twin), *_ = layouts(Named(name="twin", shift=3), 3, True)
    torch.testing.assert_close(twin * 3, torch.tensor([-4 / 8, -3 / 8, -2 / 8, -1 / 8, 0, 1, 2, 3]))
    (_, log2), *_ = layouts(Named(name="log2"), 3, True)
    torch.testing.assert_close(log2, torch.tensor([-1, -0.5, -0.25, 0, 0.25, 0.5, 1]))


@pytest.mark.parametrize(
    ("codebook", "message"),
    [
        ({"name": "powr"}, "unknown codebook 'powr'"),
        ({"name": "power", "q": 1}, "has no q; known: p"),
        ({"name": "power", "p": 1.5}, "0 < p <= 1"),
        ({"name": "power", "p": "half"}, "not a set of numbers"),
        ({"name": "two_segment", "dense": 1.0}, "0 < dense < 1"),
        ({"name": "twin", "shift": -1}, "shift >= 0"),
    ],
)
def test_bad_codebooks_are_named(codebook: dict[str, object], message: str) -> None:
    with pytest.raises(VisqError, match=message):
        list(layouts(Named.model_validate(codebook), 4, True))


def test_twin_is_for_signed_tensors() -> None:
    with pytest.raises(VisqError, match="signed"):
        tables("twin", 4, False)


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=60),
    st.integers(2, 6),
    st.sampled_from(["uniform", *TABLES]),
)
@settings(max_examples=60, deadline=None)
def test_the_error_is_that_of_the_quantizer(values: list[float], bits: int, name: str) -> None:
    x = torch.tensor(values).sort().values
    distribution = Distribution(x, torch.ones(len(values)))
    for table in tables(name, bits, True)[:3]:
        quantizer = Quantizer(Spec(bits=bits), torch.ones(1), table=table)
        error = quantizer(x).double() - x.double()
        # Sums of squares in float32 carry its rounding of x into e^2 = (x^ - x)^2.
        rounding = 1e-6 * float((x.abs() * error.abs()).sum()) + 1e-9
        assert distribution.error(table) == pytest.approx(float(error.square().sum()), rel=1e-6, abs=rounding)


@given(st.integers(2, 8), st.sampled_from(ALL), st.booleans(), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_searched_tables_encode_decode_and_simulate_alike(bits: int, name: str, signed: bool, seed: int) -> None:
    x = long_tailed(600, seed).view(2, 30, 10)
    signed = signed or name == "twin"
    x = x if signed else x.abs()
    quantizer = estimate(Spec(bits=bits, signed=signed, codebook=name, estimator="mse"), x)
    codes = quantizer.encode(x)
    assert codes.min() >= 0 and codes.max() < 2**bits
    assert torch.equal(quantizer(x), quantizer.decode(codes))
    assert torch.equal(quantizer(quantizer(x)), quantizer(x))


def estimate(spec: Spec, x: Tensor, kind: str = "activation") -> Quantizer:
    estimator = make_estimator(spec, kind)
    for _ in range(estimator.passes):
        for part in x.chunk(2) if kind == "activation" else (x,):
            estimator.observe(part)
        estimator.end_pass()
    return estimator.result()


def error(quantizer: Quantizer, x: Tensor) -> float:
    return float((quantizer(x) - x).square().sum(dtype=torch.double))


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_long_tails_want_other_codebooks_than_uniform(bits: int) -> None:
    """kmeans is the bound; power and two segments beat the best uniform clip."""
    x = long_tailed(20000).view(2, 100, 100)
    found = {name: error(estimate(Spec(bits=bits, codebook=name, estimator="mse"), x), x) for name in ("uniform", *ALL)}
    assert found["kmeans"] <= min(found["power"], found["two_segment"]) * (1 + 1e-3)
    assert max(found["power"], found["two_segment"]) < 0.75 * found["uniform"]
    assert found["twin"] <= found["uniform"] * (1 + 1e-3)


def test_the_search_is_exhaustive() -> None:
    x = long_tailed(3000)
    x = (x / x.abs().max()).sort().values
    candidates = fits(Named(name="power"), 4, True, Distribution(x, torch.ones(3000)))
    assert len(candidates) == 9 and all(len(group) == 100 for group in candidates)
    brute = min(
        error(Quantizer(Spec(bits=4), torch.ones(1), table=fit.table), x) for group in candidates[::4] for fit in group
    )
    assert best(candidates).error <= brute * (1 + 1e-6)
    assert best(candidates).params["p"] < 1


def test_twin_serves_what_follows_a_silu() -> None:
    """Negative values down to -0.28, positive ones up to 8: the negative side gets the finer step."""
    x = torch.nn.functional.silu(torch.randn(2, 50, 20, generator=torch.Generator().manual_seed(0)) * 2)
    twin = estimate(Spec(bits=4, codebook="twin", estimator="mse"), x)
    assert twin.table is not None
    below, above = twin.table[twin.table <= 0].diff().mean(), twin.table[twin.table >= 0].diff().mean()
    shift = torch.log2(above / below)
    assert shift >= 1
    torch.testing.assert_close(shift, shift.round(), rtol=0, atol=1e-4)
    assert error(twin, x) < error(estimate(Spec(bits=4, estimator="mse"), x), x)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "token", {"kind": "channel_groups", "k": 3}])
def test_tables_take_every_granularity(granularity: object) -> None:
    x = long_tailed(600).view(2, 30, 10) * torch.logspace(-1, 1, 10)
    spec = Spec(bits=4, granularity=granularity, codebook="power", estimator="mse")
    quantizer = estimate(spec, x)
    assert torch.equal(quantizer(x), quantizer.decode(quantizer.encode(x)))
    assert (quantizer.scale.numel() == 1) == (granularity == "tensor")


def test_weights_take_tables() -> None:
    weight = long_tailed(320).view(8, 40)
    quantizer = estimate(Spec(bits=4, granularity="channel", codebook="power", estimator="mse"), weight, "weight")
    assert quantizer.scale.shape == (8,)
    assert error(quantizer, weight) < error(estimate(Spec(bits=4, granularity="channel"), weight, "weight"), weight)


def test_negative_values_of_an_unsigned_site_are_refused() -> None:
    with pytest.raises(VisqError, match="must not be negative"):
        estimate(Spec(bits=4, signed=False, codebook="power", estimator="mse"), long_tailed(100).view(2, 5, 10))


def test_codebooks_need_an_estimator_that_knows_them() -> None:
    with pytest.raises(VisqError, match="codebook power: 'minmax'"):
        make_estimator(Spec(bits=4, codebook="power"), "activation")


def test_a_constant_tensor_survives() -> None:
    for value in (0.0, 3.0):
        x = torch.full((2, 5, 4), value)
        for name in ALL:
            quantizer = estimate(Spec(bits=4, codebook=name, estimator="mse"), x)
            torch.testing.assert_close(quantizer(x), x, rtol=1e-2, atol=1e-6)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
def test_the_histogram_keeps_values_to_a_thousandth(values: list[float]) -> None:
    x = torch.tensor(values)
    middles, counts = weighted_values(float_counts(x))
    assert (middles.diff() >= 0).all()
    assert int(counts.sum()) == len(values)
    repeated = torch.repeat_interleave(middles, counts.long())
    torch.testing.assert_close(repeated, x.sort().values, rtol=2e-3, atol=1e-37)


def test_quantile_of_weighted_values() -> None:
    values, counts = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([6.0, 3.0, 1.0])
    assert [weighted_quantile(values, counts, share) for share in (0.1, 0.6, 0.61, 0.9, 1.0)] == [1, 1, 2, 2, 5]
