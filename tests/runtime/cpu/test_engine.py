"""Checks whole programs on the C++ engine: batches, threads, phases, and programs it refuses."""

import subprocess
import sys

import numpy as np
import pytest

from tests.runtime.agreement import check
from tests.runtime.programs import ISAS, Maker, weight
from tests.runtime.scan_programs import make_scan
from visq.errors import VisqError
from visq.integer import operations as ir
from visq.native.extension import EMULATED, available, engine_isa, engine_isas, has_engine_isa
from visq.runtime.cpu.engine import CpuEngine

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")


def small_network(seed: int = 11, rows: int = 17, width: int = 24) -> tuple[Maker, str]:
    maker = Maker(seed, size=10)
    output = make_scan(maker, rows, width, 6, c="token")
    maker.operation(
        ir.Linear(input=list(maker.tensors)[-2], weight=maker.site(weight(7, (width,), maker.rng))), rows, 7
    )
    tokens = maker.store()
    maker.operation(ir.Rows(), 1, 0)
    maker.operations[-1]["widths"] = {}
    maker.step(ir.Load(dst=0, tensor=tokens, row=rows // 2), 7)
    maker.step(ir.Load(dst=1, tensor=output, row=rows - 1), width)
    return maker, maker.store(0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_batch_on_any_threads(isa: str, threads: int) -> None:
    maker, output = small_network()
    for batch in range(1, 10):
        check(maker, output, isas=(isa,), threads=(threads,), batch=batch)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_operations_that_run_together_and_those_that_do_not(threads: int, reverse: bool) -> None:
    """Linear layers follow each other tile by tile; a convolution and a load of one row wait for all rows."""
    rows, width = 41, 24
    maker = Maker(18)
    x = maker.random(rows, width, "token")
    for layer in range(3):
        for _ in range(2):
            maker.operation(ir.Linear(input=x, weight=maker.site(weight(width, (width,), maker.rng))), rows, width)
            maker.step(ir.Unary(op="silu", dst=1, src=0), width)
            x = maker.store(1, "token")
        w = maker.site(weight(width, (1, 4), maker.rng))
        kind = None if layer == 1 else "tensor"
        maker.operation(ir.Conv1d(input=x, weight=w, reverse=reverse), rows, width)
        maker.step(ir.Load(dst=1, tensor=x), width)
        maker.step(ir.Load(dst=2, tensor=x, row=rows - 1), width)
        maker.step(ir.Binary(op="add", dst=3, a=0, b=1), width)
        maker.step(ir.Binary(op="mul", dst=4, a=3, b=2), width)
        x = maker.store(4, kind)
    maker.operation(ir.Concat(parts=((x, 5, rows - 5), (x, 0, 5))), rows, width)
    check(maker, maker.store(), threads=(threads,), batch=4)


def test_what_runs_together_with_a_linear_of_tiles() -> None:
    """AMX takes more rows at a time than other levels, and so do the operations that follow it tile by tile."""
    rows, width = 70, 80
    maker = Maker(21)
    x, other = maker.random(rows, width, "token asymmetric"), maker.random(rows, width, "table")
    maker.operation(ir.Linear(input=x, weight=maker.site(weight(width, (width,), maker.rng))), rows, width)
    site = maker.quantizer("token", rows, width)
    divisor = maker.rng.uniform(0.5, 2, width).astype(np.float32)
    maker.bundle.rotations[site] = (maker.rng.normal(0, 0.2, (width, width)).astype(np.float32), divisor)
    codes, table = maker.store(kind="token"), maker.store(kind="table")
    rotated = maker.store(maker.step(ir.Rotate(dst=1, src=0, site=site), width))
    for name, size in [(table, width), (codes, 24), (codes, 100), (rotated, 24)]:
        maker.operation(ir.Linear(input=name, weight=maker.site(weight(size, (width,), maker.rng))), rows, size)
        maker.store(kind="tensor")
        maker.store()
    for name in (x, other):
        w = maker.site(weight(width, (1, 4), maker.rng))
        maker.operation(ir.Conv1d(input=name, weight=w, bias=maker.parameter(width)), rows, width)
        maker.step(ir.Load(dst=1, tensor=codes), width)
        maker.step(ir.Binary(op="add", dst=2, a=0, b=1), width)
        output = maker.store(2)
    check(maker, output, threads=(1, 2, 3), batch=3)


def test_a_row_of_what_is_being_written() -> None:
    maker = Maker(19)
    maker.random(5, 8)
    maker.operation(ir.Concat(parts=((maker.random(5, 8), 0, 5),)), 5, 8)
    own = maker.store()
    maker.step(ir.Load(dst=1, tensor=own, row=4), 8)
    output = maker.store(1)
    with pytest.raises(ValueError, match="not all written"):
        maker.program(output)


def test_output_of_codes_is_decoded() -> None:
    maker = Maker(12)
    check(maker, maker.random(3, 20, "token"))


def test_runs_again_give_the_same() -> None:
    maker, output = small_network()
    images = maker.images(5)
    engine = CpuEngine(maker.program(output), maker.bundle, threads=2)
    first = engine(images)
    for _ in range(20):
        assert np.array_equal(engine(images), first)
    engine.enable_profile()
    engine(images)
    profile = engine.profile()
    assert set(profile) >= {"linear", "linear body", "scan", "scan body"}
    assert all(seconds > 0 for seconds in profile.values())


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 8, 8), np.float64),
        np.zeros((1, 3, 8, 9), np.float32),
        np.zeros((3, 8, 8), np.float32),
        np.full((1, 3, 8, 8), np.nan, np.float32),
        [[1.0]],
    ],
)
def test_images_that_are_none(images: object) -> None:
    maker = Maker(13)
    output = maker.random(2, 3)
    engine = CpuEngine(maker.program(output), maker.bundle, threads=1)
    with pytest.raises(VisqError, match="images"):
        engine(images)  # type: ignore[arg-type]


def test_no_images() -> None:
    maker = Maker(14)
    engine = CpuEngine(maker.program(maker.random(2, 3)), maker.bundle, threads=2)
    assert engine(np.zeros((0, 3, 8, 8), np.float32)).shape == (0, 3)


def test_an_unknown_instruction_set() -> None:
    maker = Maker(15)
    with pytest.raises(VisqError, match="avx9"):
        CpuEngine(maker.program(maker.random(2, 3)), maker.bundle, isa="avx9")


def test_parameters_that_do_not_fit() -> None:
    maker = Maker(16)
    x = maker.random(4, 8, "token")
    maker.bundle.sites[maker.tensors[x].site] = maker.bundle.sites[maker.quantizer("token", 5, 8)]
    with pytest.raises(VisqError):
        CpuEngine(maker.program(x), maker.bundle)


def test_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker(17)
    program = maker.program(maker.random(2, 3))
    monkeypatch.setenv("VISQ_ISA", "scalar")
    assert CpuEngine(program, maker.bundle).isa == "scalar"
    monkeypatch.setenv("VISQ_ISA", "nothing")
    with pytest.raises(VisqError, match="VISQ_ISA=nothing"):
        CpuEngine(program, maker.bundle)


@pytest.mark.skipif(not has_engine_isa(EMULATED), reason="the emulation needs AVX-512 VNNI")
def test_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """AMX is the default where the machine has it, otherwise one clear error. The emulation runs only when named."""
    monkeypatch.setenv("VISQ_ISA", "amx")
    if has_engine_isa("amx"):
        assert engine_isa() == "amx"
    else:
        with pytest.raises(VisqError, match=r"^VISQ_ISA=amx is not available here; available: avx512vnni, avx512,"):
            engine_isa()
    assert EMULATED not in engine_isas()
    monkeypatch.setenv("VISQ_ISA", EMULATED)
    assert engine_isa() == EMULATED
    monkeypatch.delenv("VISQ_ISA")
    assert engine_isa() == ("amx" if has_engine_isa("amx") else "avx512vnni")


def test_the_engine_does_not_import_torch() -> None:
    code = "import sys, visq.runtime.cpu.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
