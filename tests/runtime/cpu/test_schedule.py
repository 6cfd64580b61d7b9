"""Checks the order of operations, scans that write codes, and tensors stored once, none of which the oracle has."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.csrc.builder import Builder
from tests.runtime.agreement import check
from tests.runtime.programs import ISAS, QUANTIZERS, Maker
from tests.runtime.scan_programs import FUSED, start_scan
from visq.errors import VisqError
from visq.integer import operations as ir
from visq.integer.float_scan import FloatScan
from visq.integer.operations import Constant
from visq.native.extension import available
from visq.native.scans import add_float_scan
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.cpu.schedule import scans_together

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")

SCANS = {"fused": FUSED, "fixed": {}, "tables": {"abar": "table", "bbar": "table"}, "float": {"abar": None}}


def bodies(maker: Maker, output: str) -> list[str]:
    return list(CpuEngine(maker.program(output), maker.bundle, threads=1).bodies.values())


def plus_one(maker: Maker, src: int, width: int) -> int:
    one = Constant(name=maker.parameter(1, width))
    return maker.step(ir.WithConstant(op="add_constant", dst=maker.register(), src=src, constant=one), width)


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_whose_y_is_stored_as_codes(kind: str, scan: str, reverse: bool) -> None:
    rows, width = 21, 85
    maker = Maker(3)
    start_scan(maker, rows, width, 4, reverse=reverse, **SCANS[scan])
    output = maker.store(0, kind, reverse, top=0.5)
    oracle = check(maker, output, threads=(1, 3))
    assert len(np.unique(oracle.tensors[output])) > 8
    assert bodies(maker, output)[-1] == ("store_table" if "table" in kind else "")


@pytest.mark.parametrize("kind", ["channel asymmetric", "token asymmetric", "table"])
@pytest.mark.parametrize("scan", SCANS)
def test_a_scan_whose_y_is_rounded(kind: str, scan: str) -> None:
    rows, width = 21, 85
    maker = Maker(4)
    start_scan(maker, rows, width, 4, **SCANS[scan])
    site = maker.quantizer(kind, rows, width, top=0.5)
    rounded = maker.step(ir.Round(dst=1, src=0, site=site), width)
    output = maker.store(plus_one(maker, rounded, width))
    check(maker, output)
    assert bodies(maker, output)[-1].startswith("round_table" if kind == "table" else "load")


@pytest.mark.parametrize("part", [True, False])
def test_a_scan_whose_y_is_read_twice_keeps_floats(part: bool) -> None:
    rows, width = 9, 40
    maker = Maker(5)
    start_scan(maker, rows, width, 4, **FUSED)
    maker.store(0, "channel")
    if part:
        half = maker.step(ir.Slice(dst=1, src=0, offset=16, width=24), 24)
        output = maker.store(half, "token")
    else:
        output = maker.store(plus_one(maker, 0, width))
    check(maker, output)
    assert bodies(maker, output)[-1].startswith("store")


def two_directions(maker: Maker, rows: int, width: int, kind: str) -> str:
    """Writes two scans and a linear layer: the second scan's body reads the first y, and the layer reads the sum."""
    start_scan(maker, rows, width, 4, **FUSED)
    first = maker.store(0, kind)
    other = maker.random(rows, width)
    start_scan(maker, rows, width, 4, reverse=True, **FUSED)
    site = maker.quantizer("channel", rows, width, top=0.5)
    y = maker.step(ir.Round(dst=1, src=0, site=site, reverse=True), width)
    loaded = maker.step(ir.Load(dst=2, tensor=first), width)
    added = maker.step(ir.Load(dst=3, tensor=other), width)
    total = maker.step(ir.Binary(op="add", dst=4, a=y, b=loaded), width)
    total = maker.step(ir.Binary(op="add", dst=5, a=total, b=added), width)
    merged = maker.store(total, "token")
    weight = maker.parameter(7, width)
    maker.operation(ir.Linear(input=merged, weight=weight), rows, 7)
    return maker.store()


@pytest.mark.parametrize("kind", ["channel asymmetric", "table"])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (23, 40), (30, 261)])
def test_scans_of_two_directions_run_together(rows: int, width: int, kind: str) -> None:
    maker = Maker(6)
    output = two_directions(maker, rows, width, kind)
    operations = scans_together(maker.program(output).operations)
    assert [isinstance(op.source, ir.Scan) for op in operations[-3:]] == [True, True, False]
    check(maker, output, threads=(1, 2, 3, 4), batch=3)


def test_an_order_that_keeps_what_depends_on_what() -> None:
    """A scan that reads the result of another scan waits for it, and every operation occurs once."""
    maker = Maker(7)
    start_scan(maker, 9, 20, 4, **FUSED)
    u = maker.store(0, "channel")
    start_scan(maker, 9, 20, 4, **FUSED)
    maker.operations[-1]["source"] = maker.operations[-1]["source"].model_copy(update={"u": u})
    output = maker.store()
    operations = maker.program(output).operations
    ordered = scans_together(operations)
    written: set[str] = set()
    for operation in ordered:
        loads = {step.tensor for step in operation.body if isinstance(step, ir.Load)}
        assert {*ir.inputs(operation.source), *loads} <= written
        written |= {step.tensor for step in operation.body if isinstance(step, ir.Store)}
    assert sorted(op.name for op in ordered) == sorted(op.name for op in operations)
    assert ordered != operations
    check(maker, output)


@pytest.mark.parametrize("kind", ["tensor", "channel asymmetric", "token asymmetric", "table"])
@pytest.mark.parametrize("change", [None, "scale", "direction"])
def test_equal_codes_are_stored_once(kind: str, change: str | None) -> None:
    """Two sites hold the same values, as inputs of two directions' convolutions do. Equal codes are stored once."""
    rows, width = 13, 50
    maker = Maker(8)
    x = maker.random(rows, width + 3)
    maker.operation(ir.Concat(parts=((x, 0, rows),)), rows, width + 3)
    part = maker.step(ir.Slice(dst=1, src=0, offset=3, width=width), width)
    again = maker.step(ir.Slice(dst=2, src=1, offset=0, width=width), width)
    first = maker.store(part, kind)
    quantizer = maker.bundle.sites[maker.tensors[first].site]
    if change == "scale":
        quantizer = replace(quantizer, inverse_channel=quantizer.inverse_channel * np.float32(2))
    second = maker.store(again, kind, reverse=change == "direction")
    maker.bundle.sites[maker.tensors[second].site] = quantizer
    total = []
    for tensor in (first, second):
        maker.operation(ir.Linear(input=tensor, weight=maker.parameter(width, width)), rows, width)
        total.append(maker.store())
    maker.operation(ir.Rows(), rows, 0)
    maker.operations[-1]["widths"] = {}
    a, b = (maker.step(ir.Load(dst=i, tensor=name), width) for i, name in enumerate(total))
    output = maker.store(maker.step(ir.Binary(op="add", dst=2, a=a, b=b), width))
    check(maker, output, threads=(1, 2))
    engine = CpuEngine(maker.program(output), maker.bundle, threads=1)
    by_token = kind.startswith("token")
    once = change is None or (change == "direction" and not by_token)
    assert (engine._indices[first] == engine._indices[second]) == once


FORM = FloatScan(np.ones((20, 4), np.float32), None, None, None, "for this test")


def raw(rows: int, width: int, entries: int = 0) -> Any:
    """Returns an engine with a scan over [6, 20] whose y is [rows, width], as codes of a table if it has `entries`."""
    engine = Builder(ISAS[0], 1, 1)
    ones, none = np.ones(32, np.float32), np.zeros(0, np.float32)
    tensors = [engine.add_tensor(6, n, 4096 * i, -1) for i, n in enumerate((20, 20, 4, 4))]
    codes = -1
    if entries:
        table, tokens = np.arange(entries, dtype=np.float32), ones[:rows]
        scales = (ones[:width], ones[:width], tokens, tokens, none, tokens, 0.0, 255.0)
        codes = engine.add_codec(width, rows, *scales, table, table[1:] - np.float32(0.5))
    y = engine.add_tensor(rows, width, 4096 * 4, codes)
    add_float_scan(engine, tensors, y, False, 6, FORM)
    return engine


@pytest.mark.parametrize(("rows", "width", "entries"), [(5, 20, 0), (6, 19, 0), (6, 36, 0), (6, 20, 4)])
def test_the_executor_refuses_a_y_that_does_not_fit(rows: int, width: int, entries: int) -> None:
    raw(6, 20)
    with pytest.raises(ValueError, match="a scan's y does not fit"):
        raw(rows, width, entries)


def test_the_executor_lets_scans_join_only_scans() -> None:
    engine = raw(6, 20)
    add_float_scan(engine, [0, 1, 2, 3], 4, True, 6, FORM)
    engine.join()
    engine.rows(6)
    engine.join()
    add_float_scan(engine, [0, 1, 2, 3], 4, False, 6, FORM)
    with pytest.raises(ValueError, match="a scan joins scans"):
        engine.join()


@pytest.mark.parametrize("row", [None, 0])
def test_a_scan_whose_body_reads_what_it_stores(row: int | None) -> None:
    """Lowering writes no such program. It is refused, or ordering it ends and it runs with the oracle's bits."""
    maker = Maker(5)
    start_scan(maker, 9, 16, 2)
    first = maker.store()
    loaded = maker.step(ir.Load(dst=maker.register(), tensor=first, row=row), 16)
    total = maker.step(ir.Binary(op="add", dst=maker.register(), a=0, b=loaded), 16)
    output = maker.store(total)
    if row is not None:
        with pytest.raises(ValueError, match="which is not all written yet"):
            maker.program(output)
        return
    program = maker.program(output)
    assert set(scans_together(program.operations)) == set(program.operations)
    check(maker, output)


def test_scans_that_read_each_other_keep_their_order() -> None:
    """Each scan reads the tensor that the scan before it stores, so they run one at a time, in order."""
    maker = Maker(6)
    for _ in range(3):
        start_scan(maker, 5, 16, 2)
        maker.store()
    operations = maker.program(list(maker.tensors)[-1]).operations
    scans = [operation for operation in operations if isinstance(operation.source, ir.Scan)]
    chained = [
        scan.model_copy(update={"source": scan.source.model_copy(update={"u": before.body[-1].tensor})})
        for before, scan in itertools.pairwise(scans)
    ]
    others = tuple(operation for operation in operations if operation not in scans)
    assert scans_together((*others, scans[0], *chained)) == (*others, scans[0], *chained)


def test_an_operation_that_waits_for_itself_ends() -> None:
    """A scan reads a tensor that only it stores, which no checked program does."""
    maker = Maker(7)
    start_scan(maker, 5, 16, 2)
    output = maker.store()
    operations = list(maker.program(output).operations)
    scan = operations[-1]
    operations[-1] = scan.model_copy(update={"source": scan.source.model_copy(update={"u": output})})
    with pytest.raises(VisqError, match="waits for itself"):
        scans_together(tuple(operations))
