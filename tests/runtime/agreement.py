"""Checks that the C++ engine has the oracle's bits in every tensor, on every instruction set."""

import numpy as np

from tests.runtime.programs import ISAS, Maker
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.oracle import Oracle


def check(maker: Maker, output: str, isas=ISAS, threads=(1, 2), batch: int = 1) -> Oracle:
    """Checks every image's logits and every tensor of the last image against the oracle, and returns the oracle."""
    program, images = maker.program(output), maker.images(batch)
    oracle = Oracle(program, maker.bundle)
    expected = oracle(images)
    assert np.isfinite(expected).all()
    for isa in isas:
        for count in threads:
            engine = CpuEngine(program, maker.bundle, threads=count, isa=isa, separate_memory=True)
            assert same(engine(images), expected), (isa, count)
            tensors = engine.tensors
            for name, value in oracle.tensors.items():
                assert tensors[name].dtype == value.dtype
                assert same(tensors[name], value), (isa, count, name)
            small = CpuEngine(program, maker.bundle, threads=count, isa=isa)
            assert same(small(images), expected), (isa, count, "memory used again")
    return oracle


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two arrays are equal bit for bit, apart from the sign of zeros."""
    return a.shape == b.shape and np.array_equal(a, b)
