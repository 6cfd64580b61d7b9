"""Compares the counted work with work counted by hand."""

from __future__ import annotations

import pytest

from tests.runtime.programs import Maker, weight
from visq.analysis.roofline import Rates, Work, count_work, roofline
from visq.integer import operations as ir
from visq.integer.operations import Constant


def test_a_small_program_is_counted() -> None:
    """Counts four patches of 2 x 2 pixels, an integer linear layer with SiLU, a float one, a sum with a constant."""
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


def test_operations_over_maps_are_counted() -> None:
    """Counts 1 x 1 windows, an integer depthwise convolution with LayerNorm and GELU, a transposed map and its mean."""
    maker = Maker(channels=3, size=4)
    maker.operation(ir.Patches(patch=1, stride=1), 16, 3)
    codes = maker.store(kind="tensor")
    maker.operation(
        ir.Conv2d(input=codes, weight=maker.site(weight(3, (1, 3, 3), maker.rng)), kernel=3, padding=1), 16, 3
    )
    norm = [Constant(name=maker.parameter(3)) for _ in range(2)]
    maker.step(ir.LayerNorm(dst=1, src=0, weight=norm[0], bias=norm[1], eps=1e-5), 3)
    active = maker.store(maker.step(ir.Unary(op="gelu", dst=2, src=1), 3))
    maker.operation(ir.Transpose(input=active, height=4, width=4), 16, 3)
    turned = maker.store()
    maker.operation(ir.Mean(input=turned), 1, 3)
    found = count_work(maker.program(maker.store()), maker.bundle)
    scaled, norm_gelu, mean = 16 * 3 * (1 + 2), 16 * 3 * (7 + 17 + 12), 3 * (16 + 1)
    assert found == Work(
        products8=16 * 27,
        products16=0,
        floats=scaled + norm_gelu + mean,
        weight_bytes=(27 + 4 * (3 + 3)) + 2 * 4 * 3,
        image_bytes=4 * 3 * 16,
    )


def test_the_fraction_is_that_of_the_slower_half() -> None:
    work = Work(products8=100, products16=40, floats=10, weight_bytes=1000, image_bytes=500)
    rates = Rates(products8=100, products16=20, floats=10, bytes=100)
    assert roofline(work, rates, batch=1, seconds=30) == pytest.approx(
        {"compute_ms": 4000, "memory_ms": 15000, "fraction": 0.5}
    )
    assert roofline(work, rates, batch=100, seconds=1020)["fraction"] == pytest.approx(0.5)
