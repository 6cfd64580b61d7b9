"""Hints about the order of classes: given where it explains the result, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from visq.analysis.labels import label_hint, match_outputs, reordered_top1

NAMES = [str(i) for i in range(20)]


def predict(labels: np.ndarray, order: np.ndarray, right: float, seed: int = 0) -> np.ndarray:
    """Predictions of a model that is right in a share `right` of the images and has its classes in `order`."""
    rng = np.random.default_rng(seed)
    guesses = rng.integers(0, len(order), len(labels))
    return np.where(rng.random(len(labels)) < right, order[labels], guesses)


def sorted_labels(each: int, count: int = 20) -> np.ndarray:
    return np.repeat(np.arange(count), each)


def test_numbers_in_the_order_of_spelling() -> None:
    labels = sorted_labels(50)
    spelled = np.array([sorted(NAMES).index(name) for name in NAMES])
    hint = label_hint(predict(labels, spelled, 0.8), labels, NAMES)
    assert hint is not None and "another order, that of spelling: " in hint and "--classes" in hint
    assert 75 < float(hint.split("about ")[1].split(" %")[0]) < 87


@pytest.mark.parametrize(
    "order,name",
    [
        (np.arange(20)[::-1], "another order, reversed:"),
        ((np.arange(20) + 1) % 20, "another order, shifted by one:"),
        (np.random.default_rng(3).permutation(20), "another order:"),
    ],
)
def test_other_orders(order: np.ndarray, name: str) -> None:
    labels = sorted_labels(50)
    hint = label_hint(predict(labels, order, 0.7), labels, NAMES)
    assert hint is not None and name in hint


def test_two_classes_swapped() -> None:
    labels = sorted_labels(20, 2)
    assert label_hint(1 - labels, labels, ["no", "yes"]) is not None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("each", [1, 2, 10, 200])
def test_no_hint_for_a_model_that_is_only_bad(seed: int, each: int) -> None:
    """Guesses can be fitted by an order of the classes, but only on the images it was made for."""
    labels = sorted_labels(each)
    for right in (0.0, 0.2, 0.45):
        assert label_hint(predict(labels, np.arange(20), right, seed), labels, NAMES) is None
    assert label_hint(np.zeros_like(labels), labels, NAMES) is None


def test_no_hint_for_a_good_model_or_no_images() -> None:
    labels = sorted_labels(10)
    assert label_hint(labels, labels, NAMES) is None
    assert label_hint(labels[:0], labels[:0], NAMES) is None


def test_matching() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    outputs = np.array([2, 2, 1, 2, 1, 2])
    assert match_outputs(outputs, labels, 3).tolist() == [2, 1, -1]
    assert reordered_top1(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1])) == 100
