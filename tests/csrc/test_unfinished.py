"""A file that ends too early is refused at every level, wherever it ends, and leaves nothing behind."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.csrc.builder import UNFINISHED, Builder
from tests.runtime.programs import ISAS
from visq.integer.float_scan import FloatScan
from visq.native import extension
from visq.native.flat_file import FlatFile
from visq.native.scans import add_float_scan

pytestmark = pytest.mark.skipif(not extension.available(), reason="needs the C++ extension")

ROWS, WIDTH, STATES = 33, 80, 4


@pytest.mark.parametrize("isa", ISAS)
def test_a_program_that_ends_after_any_record(isa: str) -> None:
    """The builder loads a file after each call. The linear layer is large enough for the tiles of AMX."""
    engine = Builder(isa, 1, 8)
    ones, none = np.ones(WIDTH, np.float32), np.zeros(0, np.float32)
    tokens = ones[:ROWS]
    codec = engine.add_codec(WIDTH, ROWS, ones, ones, tokens, tokens, none, tokens, 0.0, 255.0, none, none)
    codes = engine.add_tensor(ROWS, WIDTH, 0, codec)
    tensors = [engine.add_tensor(ROWS, n, 16384 * (i + 1), -1) for i, n in enumerate((WIDTH, WIDTH, STATES, STATES))]
    y = engine.add_tensor(ROWS, WIDTH, 16384 * 5, -1)
    zero = np.ones(ROWS, np.int32)
    engine.int_linear(ROWS, WIDTH, codes, np.ones(WIDTH * WIDTH, np.int8), ones, tokens, zero, ones)
    engine.store(0, tensors[0])
    form = FloatScan(np.ones((WIDTH, STATES), np.float32), None, None, None, "for this test")
    for reverse in (False, True):
        add_float_scan(engine, tensors, y, reverse, ROWS, form)
    engine.join()
    engine.unary("silu", 1, 0, 0)
    engine.store(1, tensors[1])
    engine.finish(16384 * 6, tensors[1])
    with pytest.raises(ValueError, match="the program is finished already"):
        engine.rows(ROWS)


@pytest.mark.parametrize("isa", ISAS)
def test_refusals_keep_no_reference(isa: str) -> None:
    engine = extension._C.Engine
    data = FlatFile(1, 8).bytes()
    before = sys.getrefcount(engine), sys.getrefcount(data)
    for _ in range(100):
        with pytest.raises(ValueError, match=UNFINISHED):
            engine(isa, data)
    assert (sys.getrefcount(engine), sys.getrefcount(data)) == before
