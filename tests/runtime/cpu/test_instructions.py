"""Checks that quantizers and row instructions of the C++ engine have the oracle's bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.agreement import check
from tests.runtime.programs import ISAS, QUANTIZERS, Maker
from visq.integer import operations as ir
from visq.integer.arithmetic import gelu, silu, softplus
from visq.integer.operations import Constant
from visq.native.extension import available
from visq.runtime.cpu.engine import CpuEngine

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 16), (13, 37), (30, 100), (3, 128), (7, 261)])
@pytest.mark.parametrize("reverse", [False, True])
def test_encode_and_decode(kind: str, rows: int, width: int, reverse: bool) -> None:
    maker = Maker(rows + width)
    codes = maker.random(rows, width, kind, reverse=reverse)
    maker.operation(ir.Concat(parts=((codes, 0, rows),)), rows, width)
    site = maker.quantizer(kind, rows, width, top=2.0)
    rounded = maker.step(ir.Round(dst=1, src=0, site=site, reverse=reverse), width)
    check(maker, maker.store(rounded), threads=(1,))


@pytest.mark.parametrize(
    ("width", "order"), [(1, 1), (45, 45), (10, 5), (40, 5), (64, 1), (48, 12), (192, 12), (256, 16), (160, 20)]
)
def test_rotations(width: int, order: int) -> None:
    """Rotations are dense, or take sums and differences of runs of any length before a small matrix."""
    rows = 29
    maker = Maker(width + order)
    x = maker.random(rows, width)
    maker.operation(ir.Concat(parts=((x, 0, rows),)), rows, width)
    for register in (1, 2):
        site = maker.quantizer("token", rows, width)
        divisor = maker.rng.uniform(0.5, 2, width).astype(np.float32) * maker.rng.choice([-1, 1], width)
        matrix = maker.rng.normal(0, 0.2, (order, order)).astype(np.float32)
        maker.bundle.rotations[site] = (matrix, divisor.astype(np.float32))
        maker.store(maker.step(ir.Rotate(dst=register, src=register - 1, site=site), width), "token")
    check(maker, maker.store(2), threads=(1, 3))


def test_every_instruction() -> None:
    rows, width = 29, 45
    maker = Maker(1)
    x, codes = maker.random(rows, width), maker.random(rows, width, "token asymmetric")
    maker.operation(ir.Rows(), rows, 0)
    maker.operations[-1]["widths"] = {}

    def add(instruction: ir.Instruction, size: int = width) -> int:
        return maker.step(instruction, size)

    vector, matrix = Constant(name=maker.parameter(1, 1, width)), Constant(name=maker.parameter(rows, width))
    add(ir.Load(dst=0, tensor=x))
    add(ir.Load(dst=1, tensor=codes))
    add(ir.Load(dst=2, tensor=x, row=3))
    add(ir.Load(dst=3, tensor=codes, row=rows - 1))
    add(ir.Binary(op="add", dst=4, a=0, b=1))
    add(ir.Binary(op="mul", dst=5, a=2, b=3))
    add(ir.Unary(op="silu", dst=6, src=4))
    add(ir.Unary(op="softplus", dst=7, src=5))
    add(ir.Unary(op="neg", dst=8, src=7))
    add(ir.WithConstant(op="add_constant", dst=9, src=8, constant=vector))
    add(ir.WithConstant(op="mul_constant", dst=10, src=9, constant=matrix))
    add(ir.WithScalar(dst=11, src=10, value=0.3))
    add(ir.Slice(dst=12, src=11, offset=7, width=31), 31)
    add(ir.Slice(dst=13, src=12, offset=3, width=17), 17)
    add(ir.RmsNorm(dst=14, src=11, weight=Constant(name=maker.parameter(width)), eps=1e-5))
    add(ir.RmsNorm(dst=15, src=13, weight=Constant(name=maker.parameter(17)), eps=1e-5), 17)
    add(ir.Round(dst=16, src=15, site=maker.quantizer("token", rows, 17)), 17)
    site = maker.quantizer("token", rows, width)
    divisor = maker.rng.uniform(0.5, 2, width).astype(np.float32)
    maker.bundle.rotations[site] = (maker.rng.normal(0, 0.2, (width, width)).astype(np.float32), divisor)
    add(ir.Rotate(dst=17, src=14, site=site))
    add(ir.Unary(op="gelu", dst=18, src=10))
    norm = [Constant(name=maker.parameter(size)) for size in (width, width, 17, 17)]
    add(ir.LayerNorm(dst=19, src=18, weight=norm[0], bias=norm[1], eps=1e-5))
    add(ir.LayerNorm(dst=20, src=13, weight=norm[2], bias=norm[3], eps=1e-5), 17)
    maker.store(20)
    maker.store(19, "token")
    for register, kind in [(6, "tensor"), (7, "unsigned"), (13, "channel"), (16, "table"), (17, "token")]:
        maker.store(register, kind)
        maker.store(register)
    output = maker.store(12, "channel asymmetric")
    check(maker, output, threads=(1, 3))


@given(st.lists(st.floats(-200, 200, width=32), min_size=16, max_size=16))
@settings(max_examples=30, deadline=None)
def test_functions_of_any_number(values: list[float]) -> None:
    maker = Maker(size=4, channels=1)
    maker.operation(ir.Patches(patch=4, stride=1), 1, 16)
    for index, op in enumerate(("silu", "softplus", "gelu", "neg")):
        maker.step(ir.Unary(op=op, dst=index + 1, src=0), 16)
    names = [maker.store(register) for register in (1, 2, 3, 4)]
    program = maker.program(names[0])
    image = np.array(values, np.float32).reshape(1, 1, 4, 4)
    for isa in ISAS:
        engine = CpuEngine(program, maker.bundle, threads=1, isa=isa, separate_memory=True)
        engine(image)
        x = image.reshape(1, 16)
        assert np.array_equal(engine.tensors[names[0]], silu(x)), isa
        assert np.array_equal(engine.tensors[names[1]], softplus(x)), isa
        assert np.array_equal(engine.tensors[names[2]], gelu(x)), isa
