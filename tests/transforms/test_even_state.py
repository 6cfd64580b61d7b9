"""The fitted factors: a product is found exactly, and an uneven state becomes more even than the paper makes it."""

from __future__ import annotations

import pytest
import torch

from visq.errors import VisqError
from visq.integer.spec import Named
from visq.transforms import make_transform
from visq.transforms.even_state import fitted_factors
from visq.transforms.reparameterize import rank_one_factors


def test_a_product_is_found_up_to_a_constant() -> None:
    channel, state = torch.rand(7) + 0.01, torch.rand(4) + 0.01
    factors = fitted_factors(channel[:, None] * state)
    ratio = channel[:, None] * state / (factors.channel[:, None] * factors.state)
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    assert factors.state.log().mean().abs() < 1e-5


def test_more_even_than_exponents_that_sum_to_one() -> None:
    g = torch.Generator().manual_seed(0)
    spread = (
        torch.randn(64, 1, generator=g).exp()
        * torch.linspace(1, 30, 8)
        * torch.randn(64, 8, generator=g).mul(0.3).exp()
    )

    def median_share(factors: object) -> float:
        even = spread / (factors.channel[:, None] * factors.state)  # type: ignore[attr-defined]
        return float((even / even.max()).median())

    assert median_share(fitted_factors(spread)) > 1.5 * median_share(rank_one_factors(spread[None]))


def test_share_is_the_exponent_of_the_states() -> None:
    largest = torch.rand(5, 3) + 0.1
    whole, half, none = (fitted_factors(largest, share) for share in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half.state.square(), whole.state)
    assert none.state.tolist() == [1, 1, 1]
    assert torch.equal(half.channel, whole.channel)


def test_a_dead_channel_stays_finite() -> None:
    largest = torch.rand(5, 3)
    largest[2] = 0
    factors = fitted_factors(largest)
    assert torch.isfinite(factors.channel).all() and (factors.channel > 0).all()


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(VisqError, match="share must be 0 to 1"):
        make_transform(Named.model_validate({"name": "even_state", "share": 1.5}))
