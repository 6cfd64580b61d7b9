"""Checks that chains of row instructions have the bits of the oracle, which runs instructions one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.agreement import check
from tests.runtime.programs import ISAS, QUANTIZERS, Maker
from visq.integer import operations as ir
from visq.integer.operations import Constant
from visq.native.extension import available
from visq.runtime.cpu.engine import CpuEngine

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")

#: Widths at the ends of vectors and of groups of four or eight vectors, and beyond.
WIDTHS = (1, 17, 64, 100, 128, 200, 261)
CODES = ("tensor", "channel asymmetric", "token one zero")


class Body(Maker):
    """An operation over `rows` rows with a body that is written instruction by instruction."""

    def __init__(self, rows: int, width: int, kind: str, seed: int = 0) -> None:
        super().__init__(seed)
        self.rows, self.wide, self.kind = rows, width, kind

    def start(self) -> None:
        self.operation(ir.Concat(parts=((self.random(self.rows, self.wide), 0, self.rows),)), self.rows, self.wide)

    def unary(self, op: str, src: int) -> int:
        return self.step(ir.Unary(op=op, dst=self.register(), src=src), self.width(src))

    def binary(self, op: str, a: int, b: int) -> int:
        return self.step(ir.Binary(op=op, dst=self.register(), a=a, b=b), self.width(a))

    def constant(self, src: int, op: str = "mul_constant", by_row: bool = False) -> int:
        shape = (self.rows if by_row else 1, self.width(src))
        constant = Constant(name=self.parameter(*shape))
        return self.step(ir.WithConstant(op=op, dst=self.register(), src=src, constant=constant), self.width(src))

    def scalar(self, src: int) -> int:
        return self.step(ir.WithScalar(dst=self.register(), src=src, value=0.5), self.width(src))

    def round(self, src: int, kind: str | None = None) -> int:
        site = self.quantizer(kind or self.kind, self.rows, self.width(src))
        return self.step(ir.Round(dst=self.register(), src=src, site=site), self.width(src))

    def load(self, tensor: str, row: int | None = None) -> int:
        return self.step(ir.Load(dst=self.register(), tensor=tensor, row=row), self.tensors[tensor].width)

    def store_rounded(self, rounding: ir.Round) -> str:
        """Stores the codes of a rounding in a tensor, and returns its name."""
        name = f"t{len(self.tensors)}"
        self.tensors[name] = ir.TensorDecl(rows=self.rows, width=self.width(rounding.src), site=rounding.site)
        self.operations[-1]["body"].append(ir.Store(src=rounding.src, tensor=name))
        return name

    def last(self) -> ir.Instruction:
        found: ir.Instruction = self.operations[-1]["body"][-1]
        return found


def activation(maker: Body) -> str:
    """Writes the body of a convolution: the scan reads a rounding's codes, x_proj reads codes with other scales."""
    maker.start()
    rounded = maker.round(maker.unary("silu", maker.round(0)))
    rounding = maker.last()
    assert isinstance(rounding, ir.Round)
    maker.store(rounded, "token asymmetric")
    return maker.store_rounded(rounding)


def gate(maker: Body) -> str:
    """Writes the sum of y and D u of two scans, times the gate."""
    y, reverse_y, u, reverse_u, z = (maker.random(maker.rows, maker.wide, maker.kind) for _ in range(5))
    maker.start()
    first = maker.load(y)
    total = maker.binary("add", first, maker.constant(maker.load(u)))
    other = maker.binary("add", maker.load(reverse_y), maker.constant(maker.load(reverse_u)))
    total = maker.binary("add", total, other)
    gated = maker.scalar(maker.binary("mul", total, maker.load(z)))
    return maker.store(gated, "token asymmetric")


def gate_of_floats(maker: Body) -> str:
    y, u, reverse_u, z = (maker.random(maker.rows, maker.wide) for _ in range(4))
    maker.start()
    total = maker.binary("add", maker.load(y), maker.constant(maker.load(u)))
    total = maker.binary("add", total, maker.binary("add", 0, maker.constant(maker.load(reverse_u))))
    gated = maker.scalar(maker.binary("mul", total, maker.unary("silu", maker.load(z))))
    return maker.store(gated, maker.kind)


def ends(*instructions: str) -> Callable[[Body], str]:
    """Returns a function that writes roundings and unary instructions, and stores the result as codes and as floats."""

    def write(maker: Body) -> str:
        maker.start()
        value = 0
        for name in instructions:
            value = maker.round(value) if name == "round" else maker.unary(name, value)
        maker.store(value, maker.kind)
        return maker.store(value)

    return write


def residual(maker: Body) -> str:
    """Writes a residual sum that a norm reads, and the next block as floats."""
    before = maker.random(maker.rows, maker.wide)
    maker.start()
    x = maker.load(before)
    total = maker.binary("add", x, maker.round(0))
    norm = ir.RmsNorm(dst=maker.register(), src=total, weight=Constant(name=maker.parameter(maker.wide)), eps=1e-5)
    maker.store(maker.step(norm, maker.wide), maker.kind)
    return maker.store(total)


BODIES = {
    "activation": (activation, "round silu round store store_rounded"),
    "gate": (gate, "load load mul_constant add load load mul_constant add add load mul mul_scalar store"),
    "gate of floats": (gate_of_floats, "mul_constant add mul_constant add add silu mul mul_scalar store"),
    "silu": (ends("silu"), "silu store store_floats"),
    "softplus": (ends("softplus"), "softplus store"),
    "round silu": (ends("round", "silu"), "round silu store"),
    "gelu": (ends("gelu", "round"), "gelu round store"),
    "residual": (residual, "round add"),
}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("body", BODIES)
def test_chains(body: str, width: int, kind: str) -> None:
    write, chain = BODIES[body]
    maker = Body(13, width, kind, seed=width)
    output = write(maker)
    program = maker.program(output)
    for isa in ISAS:
        found = list(CpuEngine(program, maker.bundle, threads=1, isa=isa).bodies.values())[-1]
        assert chain in found.split(" | "), (isa, found)
    check(maker, output, threads=(1,))


@pytest.mark.parametrize("table", ["table", "twin table"])
@pytest.mark.parametrize("body", BODIES)
def test_tables_stay_out_of_chains(body: str, table: str) -> None:
    maker = Body(7, 140, table)
    check(maker, BODIES[body][0](maker), threads=(1,))


def test_a_slice_ends_a_chain() -> None:
    """A value goes through memory, instead of staying in registers, where a slice of it is read."""
    maker = Body(9, 150, "channel")
    maker.start()
    value = maker.unary("silu", maker.round(0))
    part = maker.step(ir.Slice(dst=maker.register(), src=value, offset=22, width=96), 96)
    inner = maker.step(ir.Slice(dst=maker.register(), src=part, offset=10, width=80), 80)
    other = maker.step(ir.Slice(dst=maker.register(), src=value, offset=0, width=80), 80)
    maker.store(maker.binary("mul", inner, other), "token")
    maker.store(part)
    whole = maker.step(ir.Slice(dst=maker.register(), src=value, offset=0, width=150), 150)
    check(maker, maker.store(whole, "tensor"), threads=(1,))


@given(st.integers(0, 10**6), st.sampled_from(WIDTHS))
@settings(max_examples=60, deadline=None)
def test_any_body(seed: int, width: int) -> None:
    """Instructions come in any order and read any earlier values, so each body has its own chains."""
    maker = Body(8, width, "tensor", seed)
    rng = maker.rng
    floats, codes = maker.random(8, width), maker.random(8, width, "channel asymmetric")
    maker.start()
    whole = [0]  # registers as wide as the operation, small enough to be multiplied

    def pick() -> int:
        return int(rng.choice(whole[-4:]))

    def norm() -> int:
        weights = Constant(name=maker.parameter(width))
        return maker.step(ir.RmsNorm(dst=maker.register(), src=pick(), weight=weights, eps=1e-3), width)

    makers = [
        lambda: maker.round(pick(), str(rng.choice(QUANTIZERS))),
        lambda: maker.round(pick()),
        lambda: maker.unary(str(rng.choice(["silu", "softplus", "gelu", "neg"])), pick()),
        lambda: maker.binary("add", pick(), pick()),
        lambda: maker.binary("mul", maker.round(pick()), maker.round(pick())),
        lambda: maker.constant(pick(), str(rng.choice(["mul_constant", "add_constant"])), bool(rng.integers(2))),
        lambda: maker.scalar(pick()),
        lambda: maker.load(floats),
        lambda: maker.load(codes),
        lambda: maker.load(codes, row=5),
        norm,
    ]
    output = maker.store()
    for _ in range(rng.integers(1, 12)):
        whole.append(makers[rng.integers(len(makers))]())
        if rng.integers(3) == 0:
            output = maker.store(pick(), None if rng.integers(3) == 0 else str(rng.choice(QUANTIZERS)))
        elif isinstance(rounding := maker.last(), ir.Round):
            output = maker.store_rounded(rounding)
    check(maker, output, threads=(1,))
