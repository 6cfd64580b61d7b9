"""k-means groups and power-of-two steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visq.errors import VisqError
from visq.quant.groups import kmeans_1d, power_of_two_shifts


def test_well_separated_clusters_are_found() -> None:
    values = torch.tensor([1.0, 100.0, 1.1, 10.0, 101.0, 0.9, 10.2, 1000.0])
    assert kmeans_1d(values, 4).tolist() == [0, 2, 0, 1, 2, 0, 1, 3]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.data())
@settings(max_examples=100, deadline=None)
def test_labels_are_ordered_and_stable(values: list[float], data: st.DataObject) -> None:
    tensor = torch.tensor(values)
    k = data.draw(st.integers(1, len(values)))
    labels = kmeans_1d(tensor, k)
    assert labels.min() >= 0
    assert labels.max() < k
    order = tensor.argsort()
    assert (labels[order].diff() >= 0).all()
    assert torch.equal(labels, kmeans_1d(tensor, k))


def test_equal_values_leave_clusters_empty_without_nan() -> None:
    assert kmeans_1d(torch.full((5,), 3.0), 4).unique().numel() == 1


@pytest.mark.parametrize("k", [0, 6])
def test_impossible_k_is_refused(k: int) -> None:
    with pytest.raises(VisqError, match="only 5 channels or tokens"):
        kmeans_1d(torch.arange(5.0), k)


def test_shifts_are_the_nearest_power_of_two_below_the_largest_scale() -> None:
    scales = torch.tensor([0.1, 1.0, 0.3, 0.75])
    assert power_of_two_shifts(scales).tolist() == [3.0, 0.0, 2.0, 0.0]
