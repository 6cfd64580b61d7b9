"""Work counted by hand, and what becomes of it."""

from __future__ import annotations

import pytest

from tests.runtime.programs import Maker, weight
from visq.analysis.roofline import Rates, Work, count_work, roofline
from visq.runtime import program as ir
from visq.runtime.program import Constant


def test_a_small_program_is_counted() -> None:
    """Four patches of 2 x 2 pixels, an integer linear layer with SiLU, a float one, a sum with a constant."""
    maker = Maker(channels=1, size=4)
    maker.operation(ir.Patches(patch=2, stride=2), 4, 4)
    patches = maker.store(kind="tensor")
    codes = maker.site(weight(3, (4,), maker.rng))
    maker.operation(ir.Linear(input=patches, weight=codes), 4, 3)
    active = maker.store(maker.step(ir.Unary(op="silu", dst=1, src=0), 3))
    maker.operation(ir.Linear(input=active, weight=maker.parameter(5, 3)), 4, 5)
    constant = Constant(name=maker.parameter(5))
    output = maker.store(maker.step(ir.WithConstant(op="add_constant", dst=1, src=0, constant=constant), 5))
    found = count_work(maker.program(output), maker.bundle)
    encoded = 4 * 4  # each pixel of a patch is scaled once
    scaled, silu = 4 * 3 * 2, 4 * 3 * (1 + 12 + 2)  # 12: a subtraction, five steps of Horner's, a power of two
    product, added = 4 * (2 * 5 * 3 + 5), 4 * 5
    assert found == Work(
        products8=4 * 3 * 4,
        products16=0,
        floats=encoded + scaled + silu + product + added,
        weight_bytes=(3 * 4 + 4 * (3 + 3)) + 4 * (5 * 3 + 5) + 4 * 5,
        image_bytes=4 * 4 * 4,
    )


def test_the_fraction_is_that_of_the_slower_half() -> None:
    work = Work(products8=100, products16=40, floats=10, weight_bytes=1000, image_bytes=500)
    rates = Rates(products8=100, products16=20, floats=10, bytes=100)
    assert roofline(work, rates, batch=1, seconds=30) == pytest.approx(
        {"compute_ms": 4000, "memory_ms": 15000, "fraction": 0.5}
    )
    assert roofline(work, rates, batch=100, seconds=1020)["fraction"] == pytest.approx(0.5)
