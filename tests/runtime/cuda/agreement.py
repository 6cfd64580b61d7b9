"""Checks that the CUDA engine has the oracle's bits in every tensor: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.runtime.agreement import same
from tests.runtime.programs import Maker
from visq.integer.program import Program
from visq.runtime.bundle import Bundle
from visq.runtime.cuda.engine import CudaEngine
from visq.runtime.oracle import Oracle


def check(maker: Maker, output: str, batch: int = 1, **not_for_gpus: Any) -> Oracle:
    """Checks every image's logits and every tensor of the last image, and returns the oracle."""
    return check_program(maker.program(output), maker.bundle, maker.images(batch))


def check_program(program: Program, bundle: Bundle, images: np.ndarray, again: bool = False) -> Oracle:
    """Checks logits and tensors with memory of their own for all; `again` also checks where memory is used again."""
    oracle = Oracle(program, bundle)
    expected = oracle(images)
    assert np.isfinite(expected).all()
    engine = CudaEngine(program, bundle, separate_memory=True)
    assert engine.in_float == oracle.in_float
    assert same(engine(images), expected)
    tensors = engine.tensors
    for name, value in oracle.tensors.items():
        assert tensors[name].dtype == value.dtype
        assert same(tensors[name], value), name
    if again:
        small = CudaEngine(program, bundle)
        assert small.bytes_an_image < engine.bytes_an_image
        assert same(small(images), expected)
    return oracle
