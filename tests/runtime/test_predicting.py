"""Checks predictions without an engine: names, order, batches, and an error in the place of its image."""

from __future__ import annotations

import numpy as np
import pytest

from visq.data import Preprocess
from visq.errors import VisqError
from visq.runtime.predicting import Prediction, Predictor

TRANSFORM = Preprocess(4, 4, mean=(0.0,), std=(1.0,), channels=1)


def predictor(classes: int, names: tuple[str, ...] | None = None) -> tuple[Predictor, list[int]]:
    """Returns a predictor and the sizes of its batches; the likeliest class is the value of the first pixel."""
    sizes: list[int] = []

    def run(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        best = np.rint(images[:, 0, 0, 0] * 255).astype(int)
        return 10 * np.eye(classes, dtype=np.float32)[best]

    return Predictor(run, TRANSFORM, names), sizes


def grey(value: int) -> np.ndarray:
    return np.full((4, 4), value, np.uint8)


def test_order_batches_and_errors_in_their_place() -> None:
    predict, sizes = predictor(10)
    given = [grey(3), b"no image", grey(1), grey(4), b"", grey(5)]
    found = list(predict.each(iter(given), top=1, batch=4, upright=True))
    assert [None if isinstance(row, VisqError) else row[0].index for row in found] == [3, None, 1, 4, None, 5]
    assert sizes == [3, 1] and str(found[4]).startswith("image 4 cannot be read as an image")


def test_probabilities() -> None:
    row = next(predictor(3)[0].each(grey(2), top=3, batch=1, upright=True))
    assert isinstance(row, list) and [p.index for p in row] == [2, 0, 1]
    assert sum(p.probability for p in row) == pytest.approx(1) and row[0].probability > 0.99


def test_names_that_are_assumed_are_said() -> None:
    with pytest.warns(UserWarning, match="1,000 classes without names; ImageNet's names are shown") as caught:
        list(predictor(1000)[0].each([grey(7), grey(8)], top=1, batch=1, upright=True))
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:the network has 1,000 classes")
def test_names() -> None:
    for classes, names, expected in (
        (10, None, "7"),
        (10, tuple("abcdefghij"), "h"),
        (1000, None, "cock"),
        (1000, tuple(f"own {i}" for i in range(1000)), "own 7"),
    ):
        row = next(predictor(classes, names)[0].each(grey(7), top=1, batch=1, upright=True))
        assert isinstance(row, list) and row == [Prediction(7, expected, row[0].probability)]


@pytest.mark.parametrize("top,batch", [(0, 1), (1, 0)])
def test_counts_below_one(top: int, batch: int) -> None:
    with pytest.raises(VisqError, match="must be at least 1"):
        next(predictor(2)[0].each(grey(0), top=top, batch=batch, upright=True))
