"""Ranks share the images: each takes whole batches in order, and no image is taken twice."""

from __future__ import annotations

import pytest

from visq import parallel
from visq.analysis.evaluate import own_part


class Numbers:
    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, indices: range) -> Numbers:
        return Numbers([self.numbers[i] for i in indices])


@pytest.mark.parametrize(("images", "batch", "world"), [(10, 3, 1), (10, 3, 2), (24, 4, 3), (5, 4, 4), (1, 8, 3)])
def test_parts_cover_the_images_in_order(monkeypatch: pytest.MonkeyPatch, images: int, batch: int, world: int) -> None:
    monkeypatch.setattr(parallel, "world", lambda: world)
    found: list[int] = []
    for rank in range(world):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        part = own_part(Numbers(list(range(images))), batch)  # type: ignore[arg-type]
        if part is not None:
            assert part.numbers[0] % batch == 0  # type: ignore[attr-defined]
            found += part.numbers  # type: ignore[attr-defined]
    assert found == list(range(images))
