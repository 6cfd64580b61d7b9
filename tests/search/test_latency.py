"""The model of milliseconds: a linear costs its share at its width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.search.conftest import Case
from visq.native.extension import available
from visq.search import Budget
from visq.search.groups import Group
from visq.search.latency import Latency, fit, smallest


def test_a_fit_predicts_what_it_was_fitted_to() -> None:
    profiles = {
        4: {"linear": 1.0, "linear body": 1.0, "scan": 3.0, "scan body": 0.5},
        8: {"linear": 2.0, "linear body": 1.0, "scan": 3.2, "scan body": 0.5},
    }
    latency = fit(profiles, 100)
    groups = [Group("weight", ("a",), 0, 10, 25), Group("weight", ("b",), 0, 10, 75), Group("state", ("h",), 0)]
    costs = latency.costs(groups, [4, 8])
    assert costs.sum(0) == pytest.approx([2.0, 3.0]) and not costs[2].any()
    assert np.allclose(costs[1], [1.5, 2.25])
    assert latency.other == pytest.approx(3.6) and latency.spread == pytest.approx(0.1)
    assert Latency.from_json(latency.to_json()) == latency


def test_of_several_profiles_the_smallest_counts() -> None:
    given = iter([{"linear": 2.0}, {"linear": 1.0, "scan": 4.0}, {"linear": 3.0, "scan": 5.0}])
    assert smallest(lambda: next(given), 3) == {"linear": 1.0, "scan": 4.0}


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="the engine's kernels are not installed")
def test_milliseconds_are_a_budget(case: Case, tmp_path: Path) -> None:
    found = case.search(tmp_path / "state", budgets=(Budget("ms", 1e6),))
    document = found.document
    assert set(document["latency"]["linears"]) == {"3", "5", "8"}
    assert 0 < document["chosen"]["ms"] < 1e6
    assert {group["width"] for group in document["groups"]} <= {3, 5, 8}
