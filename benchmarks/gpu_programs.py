"""The small programs of `gpu_check.py`: every kind of kernel, made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.runtime.programs import Maker, weight
from tests.runtime.scan_programs import FUSED, make_scan

from visq.integer import operations as ir


def programs(small: bool) -> Iterator[tuple[str, Maker, str]]:
    """Yields a name, a program and its output, over shapes that fill no block; `small` ones are for the interpreter."""
    for kind, bits in (("token asymmetric", 8), ("tensor", 4), ("groups asymmetric", 8), ("channel", 8)):
        maker = Maker(1)
        x = maker.random(37, 130, kind)
        w = maker.site(weight(70, (130,), maker.rng, bits=bits))
        maker.operation(ir.Linear(input=x, weight=w, bias=maker.parameter(70)), 37, 70)
        maker.step(ir.Unary(op="silu", dst=1, src=0), 70)
        maker.step(ir.Unary(op="softplus", dst=2, src=0), 70)
        maker.step(ir.Unary(op="gelu", dst=3, src=0), 70)
        for register in (1, 2, 3):
            output = maker.store(register)
        yield f"product of {kind} codes, {bits}-bit weights", maker, output
    maker = Maker(2)
    x = maker.random(36, 33, "channel asymmetric")
    maker.operation(ir.Conv1d(input=x, weight=maker.site(weight(33, (1, 4), maker.rng)), reverse=True), 36, 33)
    y = maker.store(kind="tensor")
    maker.operation(
        ir.Conv2d(input=y, weight=maker.site(weight(33, (1, 3, 3), maker.rng)), kernel=3, padding=1), 36, 33
    )
    maker.step(ir.RmsNorm(dst=1, src=0, weight=ir.Constant(name=maker.parameter(33)), eps=1e-5), 33)
    yield "convolutions and a norm", maker, maker.store(1)
    scans: dict[str, dict[str, Any]] = {
        "fixed point": {},
        "fixed point with tables": {"abar": "table", "bbar": "table channels", "reverse": True},
        "fused": {**FUSED, "reverse": True},
        "ladder": {**FUSED, "ladder": True},
        "float32": {"h": "states", "u": None},
    }
    for name, options in scans.items():
        maker = Maker(3)
        yield f"scan, {name}", maker, make_scan(maker, 5 if small else 41, 37, 3 if small else 16, **options)
    length, heads, width = (5, 2, 6) if small else (49, 3, 99)
    for name, kind in (("integers", "token asymmetric"), ("float32", None)):
        maker = Maker(4)
        q, k, v = (maker.random(length, width, part) for part in (kind, kind, kind and "channel asymmetric"))
        probs = maker.quantizer("unsigned", length, heads * length, top=2.2)
        source = ir.Attention(q=q, k=k, v=v, heads=heads, length=length, probs=probs)
        maker.operation(source, length, width)
        yield f"attention, {name}", maker, maker.store()
    yield "appended and turned channels", *appended()
    yield "samples and resized maps", *resized()


def appended() -> tuple[Maker, str]:
    maker = Maker(5)
    a, b = maker.random(19, 5), maker.random(19, 31, "token asymmetric")
    maker.operation(ir.Concat(parts=((a, 0, 19),)), 19, 5)
    maker.step(ir.Append(dst=2, a=0, b=maker.step(ir.Load(dst=1, tensor=b), 31)), 36)
    return maker, maker.store(maker.step(ir.Turn(dst=3, src=2), 36), "channel asymmetric")


def resized() -> tuple[Maker, str]:
    maker = Maker(6)
    x, samples = maker.random(25, 19, "token asymmetric"), []
    for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
        source = ir.Sample(input=x, height=5, width=5, row=row, column=column, by_columns=row == 1)
        maker.operation(source, 9, 19)
        samples.append(maker.store())
    maker.operation(ir.MergeSamples(inputs=tuple(samples), height=5, width=5), 25, 19)
    merged = maker.store()
    maker.operation(ir.AveragePool(input=merged, height=3, width=3), 9, 19)
    pooled = maker.store(kind="tensor")
    maker.operation(ir.Bilinear(input=pooled, like=x), 25, 19)
    return maker, maker.store()
