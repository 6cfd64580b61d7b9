"""Samples of a map, maps of another size and averages of their parts on the CUDA engine."""

from __future__ import annotations

import pytest

from tests.runtime.cuda.agreement import check
from tests.runtime.programs import Maker
from tests.runtime.test_dense import a_map
from visq.integer import operations as ir


@pytest.mark.parametrize(("kind", "height", "width"), [("token asymmetric", 5, 3), ("table channel", 1, 4)])
def test_samples_and_back(kind: str, height: int, width: int) -> None:
    """A map whose sides are odd goes on with zeros, whatever the codes' zero point is."""
    maker = Maker(height)
    x = maker.random(height * width, 17, kind)
    names = []
    for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
        source = ir.Sample(input=x, height=height, width=width, row=row, column=column, by_columns=row == 1)
        maker.operation(source, source.size[0] * source.size[1], 17)
        names.append(maker.store(kind=kind if column else None))
    maker.operation(ir.MergeSamples(inputs=tuple(names), height=height, width=width), height * width, 17)
    check(maker, maker.store(), batch=2)


@pytest.mark.parametrize(("size", "target", "kind"), [((3, 5), (6, 10), "channel"), ((9, 6), (4, 4), None)])
def test_maps_of_another_size(size: tuple[int, int], target: tuple[int, int], kind: str | None) -> None:
    maker = Maker(3)
    x, like = a_map(maker, *size, 21, kind), a_map(maker, *target, 2, None)
    maker.operation(ir.Bilinear(input=x, like=like), target[0] * target[1], 21)
    maker.store()
    maker.operation(ir.AveragePool(input=x, height=target[0], width=target[1]), target[0] * target[1], 21)
    check(maker, maker.store(kind="tensor"), batch=2)
