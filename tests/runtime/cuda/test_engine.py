"""The CUDA engine as a whole: batches, images and machines it refuses, what `visq.load` gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import visq
from tests.runtime.agreement import same
from tests.runtime.cuda.agreement import check_program
from tests.runtime.programs import Maker, weight
from tests.runtime.scan_programs import FUSED, make_scan
from visq.cli.app import app
from visq.errors import VisqError
from visq.integer import operations as ir
from visq.models import create_model
from visq.runtime import Engine
from visq.runtime.cuda import bodies, device, sources
from visq.runtime.cuda import engine as cuda
from visq.runtime.cuda.engine import CudaEngine, refuse_lost_sums
from visq.runtime.oracle import Oracle


def small_network(seed: int = 0) -> tuple[Maker, str]:
    maker = Maker(seed)
    x = maker.random(3, 8, "token")
    maker.operation(ir.Linear(input=x, weight=maker.site(weight(5, (8,), maker.rng))), 3, 5)
    maker.step(ir.Unary(op="silu", dst=1, src=0), 5)
    return maker, maker.store(1)


def test_any_batch_and_memory_used_again() -> None:
    maker, output = small_network()
    program, images = maker.program(output), maker.images(6)
    expected = Oracle(program, maker.bundle)(images)
    engine = CudaEngine(program, maker.bundle)
    for batch in (1, 6, 2, 3, 4, 5, 1):
        assert same(engine(images[:batch]), expected[:batch]), batch
    assert len(engine._runs) == cuda.KEPT
    assert engine(images[:0]).shape == (0, 5)
    check_program(program, maker.bundle, images[:2], again=True)


def test_output_of_codes_is_decoded() -> None:
    maker = Maker(12)
    check_program(maker.program(maker.random(2, 7, "token", reverse=True)), maker.bundle, maker.images(2))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((1, 3, 8, 8), np.nan, np.float32), "images hold NaN or Inf"),
        (np.full((1, 3, 8, 8), np.inf, np.float32), "images hold NaN or Inf"),
        (np.full((1, 3, 8, 8), 1e6, np.float32), "normalize them"),
        (np.zeros((1, 3, 8, 9), np.float32), "must be float32"),
    ],
)
def test_images_that_are_none(images: np.ndarray, message: str) -> None:
    maker, output = small_network()
    engine = CudaEngine(maker.program(output), maker.bundle)
    with pytest.raises(VisqError, match=message):
        engine(images)


def test_tensors_without_memory_of_their_own() -> None:
    maker, output = small_network()
    engine = CudaEngine(maker.program(output), maker.bundle)
    with pytest.raises(VisqError, match="separate_memory"):
        _ = engine.tensors


def test_what_the_engine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    maker, output = small_network()
    program = maker.program(output)
    monkeypatch.delitem(bodies.EXPRESSIONS, "silu")
    with pytest.raises(VisqError, match=r"^operation op\d: the engine on CUDA has no row instruction silu; .*'int'"):
        CudaEngine(program, maker.bundle)
    monkeypatch.undo()
    monkeypatch.delitem(sources._SOURCES, ir.Linear)
    with pytest.raises(VisqError, match=r"has no source linear; .*'int'"):
        CudaEngine(program, maker.bundle)


def test_a_kernel_that_the_gpu_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    maker, output = small_network()
    engine = CudaEngine(maker.program(output), maker.bundle)

    class Refusing:
        def __getitem__(self, grid: Any) -> Any:
            raise cuda.COMPILE_ERRORS[1](9, 8, "shared memory")

    class Late:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **options: Refusing()[grid]

    monkeypatch.setattr(cuda, "function", lambda kernel: Late())
    with pytest.raises(VisqError, match=r"^operation op0: Triton cannot compile .*shared memory.*'int'"):
        engine(maker.images())


PACKED = "add.s16x2 \t%r224, %r183, %r208;"


@pytest.mark.parametrize(
    ("ptx", "sass"),
    [
        ("add.s32 \t%r1, %r2, -128;", "VIADD R5, R18, 0xffffff80;"),
        (PACKED, "VIADD.16x2 R89, R42, 0xff80ff80;"),
        (PACKED, "VIADD.16x2 R0, R0, 0xff80 ;"),
    ],
)
def test_sums_that_are_right(ptx: str, sass: str) -> None:
    refuse_lost_sums("op", SimpleNamespace(asm={"ptx": ptx, "sass": sass}))


def test_a_sum_that_the_assembler_lost_is_refused() -> None:
    """CUDA 12.8 made this of `code - 128` where the other half of the register was not used."""
    kernel = SimpleNamespace(asm={"ptx": PACKED, "sass": "--:-:Y:0:2\tVIADD.16x2 R38, R22, 0x0;"})
    with pytest.raises(VisqError, match=r"operation scan_b: the assembler .* gets a sum of its kernel wrong"):
        refuse_lost_sums("scan_b", kernel)


def test_too_many_images_name_how_many_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    maker, output = small_network()
    engine = CudaEngine(maker.program(output), maker.bundle)

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cuda, "_Run", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * engine.bytes_an_image, 1 << 30))
    with pytest.raises(VisqError, match=r"^20 images need .* use a batch of at most 9$"):
        engine(maker.images(20))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 1 << 30))
    with pytest.raises(VisqError, match="not even one image fits; use backend 'int'"):
        engine(maker.images(1))


def test_parameters_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    maker, output = small_network()

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(CudaEngine, "_parameter", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 1 << 30))
    with pytest.raises(VisqError, match=r"the parameters do not fit into the memory of .*; 1 of 1024 MiB are free"):
        CudaEngine(maker.program(output), maker.bundle)


def test_a_scan_of_too_many_states_is_refused_by_name() -> None:
    maker = Maker(1)
    output = make_scan(maker, 2, 2, 257, **FUSED)
    message = r"^operation op\d+: the engine on CUDA has no scan of more than 256 states; .*'int'"
    with pytest.raises(VisqError, match=message):
        CudaEngine(maker.program(output), maker.bundle)


def test_machines_without_a_gpu_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(name: str | None = None) -> str:
        with pytest.raises(VisqError) as found:
            device.find_device(name)
        return str(found.value)

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "not on 'cuda:x'" in error("cuda:x")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert error() == "backend 'cuda' cannot be used: this PyTorch is built without CUDA; backend 'int' runs on the CPU"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no GPU: there is none, or its driver is too old; backend 'int'" in error()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "there is no GPU 2, the last one is cuda:1" in error("cuda:2")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert "needs compute capability 8.0, and this GPU has 7.5" in error("cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert device.find_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else object())
    assert error().startswith("backend 'cuda' needs triton: pip install 'visq[gpu]'; ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert error() == "backend 'cuda' needs torch: pip install torch; backend 'int' runs on the CPU"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "a"
    torch.manual_seed(0)
    geometry = dict(image_size=28, patch_size=14, stride=14, channels=1, embed_dim=16, depth=1, d_state=2)
    model = create_model("vim", **geometry, num_classes=10)
    model.card = visq.load_model("vim_nano_fmnist").card
    visq.quantize(model, "visq-w8a8-fused", "fashion-mnist", samples=2, out=folder, check=False)
    return folder


def test_load_and_the_command_line(artifact: Path) -> None:
    engine = visq.load(artifact, backend="cuda")
    assert isinstance(engine, Engine) and engine.backend == "cuda"
    assert engine.kernel == ("triton-cuda:0" if torch.cuda.is_available() else "triton-interpreter")
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    assert engine.predict(pixels) == visq.load(artifact, backend="int").predict(pixels)
    assert torch.cuda.is_available() or engine.profile(np.zeros((1, 1, 28, 28), np.float32)) == {}
    found = CliRunner().invoke(
        app, ["eval", str(artifact), "--data", "fashion-mnist", "--backend", "cuda", "--limit", "2"]
    )
    assert found.exit_code == 0 and "engine: triton-" in found.output and "(cuda): top-1" in found.output


def test_backends_that_do_not_fit(artifact: Path) -> None:
    with pytest.raises(VisqError, match="backend 'tpu' is unknown; there are sim, int and cuda"):
        visq.load(artifact, backend="tpu")
    with pytest.raises(VisqError, match="backend 'int' runs on the CPU, not on 'cuda:0'; use backend 'cuda'"):
        visq.load(artifact, backend="int", device="cuda:0")
    with pytest.raises(VisqError, match="use backend 'cuda' for a GPU"):
        visq.load(artifact, device="cuda")
    with pytest.raises(VisqError, match="backend 'x' is unknown; the engine has int and cuda"):
        Engine(artifact, backend="x")
