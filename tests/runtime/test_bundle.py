"""Checks that rotations in an artifact that do not fit are refused before the engine sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visq.errors import VisqError
from visq.runtime.bundle import Bundle

Shape = tuple[int, ...]


def bundle(**parts: np.ndarray) -> Bundle:
    config: Any = None  # rotations need no config
    return Bundle(config, {f"site.in.{name}": value for name, value in parts.items()})


@pytest.mark.parametrize(("order", "width"), [(3, 3), (3, 12), (1, 8)])
def test_a_rotation_is_a_power_of_two_of_runs(order: int, width: int) -> None:
    matrix, divisor = np.eye(order, dtype=np.float32), -np.ones(width, np.float32)
    found = bundle(rotation=matrix, divisor=divisor).rotation("site.in")
    assert np.array_equal(found[0], matrix) and np.array_equal(found[1], divisor)
    assert np.array_equal(bundle(rotation=matrix).rotation("site.in")[1], np.ones(order, np.float32))


@pytest.mark.parametrize(
    ("rotation", "divisor"),
    [
        ((3, 3), (9,)),  # three runs
        ((3, 3), (2,)),
        ((3, 3), (0,)),
        ((3, 3), (3, 1)),
        ((3, 2), (3,)),
        ((9,), (9,)),
        ((0, 0), (4,)),
        ((0, 0), None),
        (None, (4,)),
        (None, None),
    ],
)
def test_rotations_that_do_not_fit_are_refused(
    rotation: tuple[int, ...] | None, divisor: tuple[int, ...] | None
) -> None:
    shapes = {"rotation": rotation, "divisor": divisor}
    parts = {name: np.ones(shape, np.float32) for name, shape in shapes.items() if shape is not None}
    with pytest.raises(VisqError, match=r"site\.in: its rotation and divisor"):
        bundle(**parts).rotation("site.in")
