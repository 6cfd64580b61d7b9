"""Checks that pieces of the engine's memory never overlap, and that freed pieces are used again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visq.errors import VisqError
from visq.native.memory import LANES, LINE, Arena, flat, pad, row_bytes


@given(st.lists(st.tuples(st.integers(1, 300), st.booleans()), max_size=40))
def test_pieces_do_not_overlap(steps: list[tuple[int, bool]]) -> None:
    arena, held = Arena(LINE), dict[int, int]()
    for amount, free_one in steps:
        at = arena.take(amount)
        assert at % LINE == 0 and at + amount <= arena.size
        for other, size in held.items():
            assert at + amount <= other or other + size <= at
        held[at] = amount
        if free_one:
            first = min(held)
            arena.free(first)
            del held[first]


def test_freed_memory_is_used_again() -> None:
    arena = Arena(LINE)
    first, second = arena.take(100), arena.take(64)
    arena.free(first)
    assert arena.take(128) == first and arena.take(1) == second + 64
    assert arena.size == 128 + 64 + 64


def test_rows_are_padded() -> None:
    assert pad(17, LANES) == 32 and pad(16, LANES) == 16
    assert row_bytes(17, coded=False) == 128 and row_bytes(17, coded=True) == LINE


def test_values_must_fit_their_type() -> None:
    assert flat(np.array([[1.0, -2.0]]), np.int8).tolist() == [1, -2]
    with pytest.raises(VisqError, match="values do not fit int8"):
        flat(np.array([128]), np.int8)
