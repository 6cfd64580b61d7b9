"""The integer program against all choices, tried one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visq.search.solve import Limit, solve, total


def best_of_all(losses: np.ndarray, pairs: list[tuple[int, int, float]], limits: list[Limit]) -> float | None:
    groups, widths = losses.shape
    found = [
        total(choice, losses, pairs)
        for choice in itertools.product(range(widths), repeat=groups)
        if all(limit.costs[np.arange(groups), list(choice)].sum() <= limit.most for limit in limits)
    ]
    return min(found, default=None)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 4), st.floats(-0.2, 1.2))
def test_no_choice_is_better(seed: int, groups: int, widths: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    losses = -np.sort(-(rng.exponential(1.0, (groups, widths)) ** 3), axis=1)
    costs = np.sort(rng.integers(1, 50, (groups, widths)), axis=1).astype(float)
    least, most = costs.min(1).sum(), costs.max(1).sum()
    limits = [Limit(costs, float(np.floor(least + share * (most - least))))]
    some = [(a, b) for a in range(groups) for b in range(a + 1, groups)][:3]
    pairs = [(a, b, float(rng.uniform(0, 1))) for a, b in some]
    expected = best_of_all(losses, pairs, limits)
    found = solve(losses, pairs, limits)
    if expected is None:
        assert found is None
    else:
        assert found is not None and found.gap == pytest.approx(0, abs=1e-9)
        assert found.loss == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert limits[0].costs[np.arange(groups), list(found.choice)].sum() <= limits[0].most


def test_an_infinite_loss_is_never_taken() -> None:
    losses = np.array([[np.inf, 1.0], [0.5, 0.1]])
    found = solve(losses, [], [Limit(np.array([[1.0, 2.0], [1.0, 2.0]]), 3.0)])
    assert found is not None and found.choice == (1, 0)
    assert solve(losses, [], [Limit(np.array([[1.0, 2.0], [1.0, 2.0]]), 2.0)]) is None


def test_interaction_moves_the_choice() -> None:
    """Two sites whose errors add up: the second one is better kept apart from the first."""
    losses = np.array([[1.0, 0.0], [1.0, 0.0], [1.1, 0.0]])
    costs = np.array([[0.0, 1.0]] * 3)
    alone = solve(losses, [], [Limit(costs, 1.0)])
    together = solve(losses, [(0, 1, 1.0)], [Limit(costs, 1.0)])
    assert alone is not None and alone.choice == (0, 0, 1)
    assert together is not None and together.choice in ((1, 0, 0), (0, 1, 0))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    print("before", flush=True)
    solve(np.array([[2.0, 1.0]] * 4), [(0, 1, 0.5)], [Limit(np.array([[1.0, 2.0]] * 4), 6.0)])
    print("after", flush=True)
    assert capfd.readouterr().out == "before\nafter\n"


def test_what_a_budget_leaves_is_spent() -> None:
    """A group whose bits make no difference still gets the bits that are free."""
    losses = np.array([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    costs = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    for most, expected in ((6.0, (2, 2)), (5.0, (2, 1)), (4.0, (2, 0))):
        found = solve(losses, [], [Limit(costs, most)])
        assert found is not None and found.choice == expected


def test_losses_far_below_the_largest_count() -> None:
    losses = np.array([[1.0, 0.0], [2e-8, 0.0], [1e-8, 0.0]])
    found = solve(losses, [], [Limit(np.array([[0.0, 1.0]] * 3), 2.0)])
    assert found is not None and found.choice == (1, 1, 0)
