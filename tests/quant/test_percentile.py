"""Percentile clipping against sorting."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.estimators import make_estimator
from visq.quant.estimators.percentile import BINS
from visq.quant.quantizer import Quantizer


def estimate(x: Tensor, percentile: float, parts: int = 3, **options: object) -> Quantizer:
    spec = Spec.model_validate({"bits": 8, "estimator": {"name": "percentile", "percentile": percentile}, **options})
    estimator = make_estimator(spec, "activation")
    for _ in range(estimator.passes):
        for part in x.chunk(parts):
            estimator.observe(part)
        estimator.end_pass()
    return estimator.result()


@pytest.fixture
def x() -> Tensor:
    """[12, 20, 8] heavy-tailed, with a spread over tokens and channels."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-1, 1, 8) * torch.logspace(-0.5, 0.5, 20)[:, None]
    return torch.randn(12, 20, 8, generator=generator).pow(3) * spread


@pytest.mark.parametrize("percentile", [90, 99, 99.9, 100])
@pytest.mark.parametrize(("granularity", "move"), [("tensor", None), ("channel", 2), ("token", 1)])
def test_symmetric_limits_hold_the_share(x: Tensor, percentile: float, granularity: str, move: int | None) -> None:
    quantizer = estimate(x, percentile, granularity=granularity)
    rows = x.reshape(1, -1) if move is None else x.movedim(move, 0).flatten(1)
    limit = quantizer.scale * quantizer.spec.qmax
    width = (rows.amax(1) - rows.amin(1)) / BINS
    for row, top, tolerance in zip(rows, limit, width, strict=True):
        expected = row.abs().sort().values[max(0, -(-int(percentile * row.numel()) // 100) - 1)]
        assert abs(float(top - expected)) <= 2.1 * float(tolerance) + 1e-3 * float(expected)
        assert (row.abs() <= top * (1 + 1e-6)).float().mean() >= percentile / 100 - 1e-6


@pytest.mark.parametrize("percentile", [90, 99, 100])
def test_asymmetric_limits_cut_both_tails(percentile: float) -> None:
    shifted = torch.randn(12, 100, 50, generator=torch.Generator().manual_seed(0)).abs() * 2 - 0.3
    quantizer = estimate(shifted, percentile, symmetric=False)
    assert quantizer.zero_point is not None
    low = -float(quantizer.zero_point * quantizer.scale)
    high = float((255 - quantizer.zero_point) * quantizer.scale)
    tail = (1 - percentile / 100) / 2
    step = float(quantizer.scale) + float(shifted.max() - shifted.min()) / BINS
    assert high == pytest.approx(float(torch.quantile(shifted.flatten(), 1 - tail)), abs=2 * step)
    assert low == pytest.approx(min(0.0, float(torch.quantile(shifted.flatten(), tail))), abs=2 * step)


def test_unsigned_codes_of_values_that_are_never_negative() -> None:
    x = torch.randn(12, 100, 50, generator=torch.Generator().manual_seed(0))
    quantizer = estimate(x.abs(), 99, signed=False)
    limit = float(quantizer.scale * 255)
    assert limit == pytest.approx(float(torch.quantile(x.abs().flatten(), 0.99)), rel=0.02)


@pytest.mark.parametrize("kind", ["channel_groups", "token_groups"])
def test_groups_have_a_limit_each(x: Tensor, kind: str) -> None:
    quantizer = estimate(x, 99, granularity={"kind": kind, "k": 3})
    assert quantizer.group is not None
    for group in range(3):
        members = x[..., quantizer.group == group] if kind == "channel_groups" else x[:, quantizer.group == group]
        inside = members.abs() <= quantizer.scale[group] * 127 * (1 + 1e-6)
        assert 0.99 <= inside.float().mean() <= 0.999


def test_batches_do_not_matter(x: Tensor) -> None:
    assert torch.equal(estimate(x, 99, parts=1).scale, estimate(x, 99, parts=6).scale)


@pytest.mark.parametrize("value", [0.0, 2.5, -1.0])
@pytest.mark.parametrize("options", [{}, {"symmetric": False}])
def test_a_constant_tensor_is_kept(value: float, options: dict[str, object]) -> None:
    x = torch.full((4, 3, 2), value)
    torch.testing.assert_close(estimate(x, 99.9, **options)(x), x, rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("percentile", [50, 101])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(VisqError, match="percentile"):
        estimate(torch.ones(3, 2, 2), percentile)


@pytest.mark.slow
def test_ten_million_values_take_seconds() -> None:
    x = torch.randn(10, 1000, 1000)
    start = time.perf_counter()
    estimate(x, 99.9, parts=2)
    assert time.perf_counter() - start < 20  # on a busy machine
