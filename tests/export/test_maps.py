"""ONNX of operations that cut maps, put them together or change their size, against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runtime.programs import Maker
from visq.integer import operations as ir
from visq.runtime.oracle import Oracle

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")

from visq.export.program import to_onnx
from visq.export.runtimes import installed


def check(maker: Maker, output: str, height: int, exact: bool = True) -> None:
    """Compares a map in every installed runtime with the oracle's."""
    maker.tensors[output] = maker.tensors[output].model_copy(update={"height": height})
    program = maker.program(output).model_copy(update={"output_map": True})
    images = maker.images(2)
    expected = Oracle(program, maker.bundle)(images)
    for open_content in installed().values():
        found = open_content(to_onnx(program, maker.bundle).SerializeToString(), 1)[0](images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=0 if exact else 1e-6)


def pixels(size: int) -> tuple[Maker, str]:
    """Returns a program that begins with the image as a map, and the map's name."""
    maker = Maker(0, size=size)
    maker.operation(ir.Patches(patch=1, stride=1), size**2, 3)
    return maker, maker.store()


@pytest.mark.parametrize(("side", "window"), [(4, 2), (5, 2), (3, 4), (3, 3)])
def test_windows_of_a_map(side: int, window: int) -> None:
    maker, x = pixels(side)
    rows = (-(-side // window) * window) ** 2
    maker.operation(ir.EnterWindows(input=x, side=side, window=window), rows, 3)
    inside = maker.store()
    check(maker, inside, 1)
    maker.operation(ir.LeaveWindows(input=inside, side=side, window=window), side**2, 3)
    check(maker, maker.store(), side)


@pytest.mark.parametrize("side", [4, 5])
def test_samples_of_a_map(side: int) -> None:
    maker, x = pixels(side)
    samples = []
    for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
        source = ir.Sample(input=x, height=side, width=side, row=row, column=column, by_columns=row == 1)
        maker.operation(source, (-(-side // 2)) ** 2, 3)
        samples.append(maker.store())
    for sample in samples:
        check(maker, sample, 1)
    first, second, third, fourth = samples
    source = ir.MergeSamples(inputs=(first, second, third, fourth), height=side, width=side)
    maker.operation(source, side**2, 3)
    check(maker, maker.store(), side)


@pytest.mark.parametrize(
    ("operation", "side", "exact"),
    [(ir.AveragePool, 3, False), (ir.Bilinear, 7, True), (ir.Bilinear, 3, True)],
    ids=["average_pool", "larger", "smaller"],
)
def test_maps_of_other_sizes(operation: Any, side: int, exact: bool) -> None:
    maker, x = pixels(5)
    if operation is ir.AveragePool:
        maker.operation(ir.AveragePool(input=x, height=side, width=side), side**2, 3)
    else:
        like = maker.random(side**2, 3)
        maker.operation(ir.Bilinear(input=x, like=like), side**2, 3)
    check(maker, maker.store(), side, exact)
