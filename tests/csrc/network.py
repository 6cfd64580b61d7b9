"""A small network for tests of threads: linear layers, a convolution and a scan, so that phases of rows and of channels
follow each other."""

from __future__ import annotations

import numpy as np

from tests.runtime.programs import Maker, weight
from visq.integer import operations as ir
from visq.runtime.cpu.engine import CpuEngine


def engine(threads: int, isa: str | None = None, layers: int = 6, rows: int = 64, width: int = 96) -> CpuEngine:
    maker = Maker(5)
    x = maker.random(rows, width, "tensor")
    for _ in range(layers):
        for size in (2 * width, width):
            maker.operation(
                ir.Linear(input=x, weight=maker.site(weight(size, (maker.tensors[x].width,), maker.rng))), rows, size
            )
            x = maker.store(maker.step(ir.Unary(op="silu", dst=1, src=0), size), "tensor")
        # Every row of the next layer depends on several rows of this one.
        maker.operation(ir.Conv1d(input=x, weight=maker.site(weight(width, (1, 4), maker.rng))), rows, width)
        x = maker.store(maker.step(ir.Unary(op="silu", dst=1, src=0), width), "tensor")
    maker.operation(ir.Mean(input=x), 1, width)
    return CpuEngine(maker.program(maker.store()), maker.bundle, threads=threads, isa=isa)


def images(engine: CpuEngine, batch: int) -> np.ndarray:
    shape = (batch, engine.program.channels, engine.program.size, engine.program.size)
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
