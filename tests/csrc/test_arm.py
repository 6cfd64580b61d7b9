"""libvisq on 64-bit ARM: cross-compiled, run by qemu, with the bits of the engine here. `make test-arm` runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.csrc.flat_files import PAIRS, QUICK, as_stored, make
from visq.native.extension import available
from visq.runtime.engine import Engine

CSRC = Path(__file__).parents[2] / "csrc"
NEEDED = ("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64")
MISSING = [name for name in NEEDED if not shutil.which(name)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="needs the extension"),
    pytest.mark.skipif(bool(MISSING), reason=f"ARM is not tested: {', '.join(MISSING)} missing (docs/deploy.md)"),
]

#: Fastest first.
LEVELS = ("i8mm", "neondot", "neon", "scalar")
IMAGES = 4


def qemu(processor: str) -> list[str]:
    return ["qemu-aarch64", "-cpu", processor, "-L", "/usr/aarch64-linux-gnu"]


@pytest.fixture(scope="module")
def visq_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example program for ARM; VISQ_ARM_BUILD names a build folder to use again."""
    named = os.environ.get("VISQ_ARM_BUILD")
    build = Path(named) if named else tmp_path_factory.mktemp("arm")
    toolchain = CSRC / "cmake" / "aarch64.cmake"
    subprocess.run(["cmake", "-S", CSRC, "-B", build, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"], check=True)
    subprocess.run(["cmake", "--build", build, "--parallel", str(os.cpu_count())], check=True)
    return build / "visq-run"


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_logits_have_the_bits_of_the_engine(visq_run: Path, tmp_path: Path, pair: tuple[str, str]) -> None:
    artifact, file = make(*pair, tmp_path)
    engine = Engine(artifact, threads=1)
    side, rng = engine.preprocess.image_size, np.random.default_rng(0)
    for index in range(IMAGES):
        pixels = rng.integers(0, 256, (side, side), dtype=np.uint8)
        (tmp_path / "a.pgm").write_bytes(f"P5 {side} {side} 255\n".encode() + pixels.tobytes())
        prepared = np.repeat(pixels[None, None], engine.preprocess.channels, axis=1)
        expected = as_stored(engine(engine.preprocess.normalize_array(prepared)))[0]
        for level in LEVELS:
            command = [*qemu("max"), visq_run, file, tmp_path / "a.pgm"]
            command += ["--level", level, "--threads", str(1 + index % 2), "--logits"]
            done = subprocess.run([*map(str, command)], capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
            assert np.array_equal(np.frombuffer(done.stdout, np.float32).reshape(expected.shape), expected), level


@pytest.mark.parametrize(
    ("processor", "fastest"), [("max", "i8mm"), ("neoverse-n1", "neondot"), ("cortex-a53", "neon")]
)
def test_the_processor_decides_the_level(visq_run: Path, tmp_path: Path, processor: str, fastest: str) -> None:
    """A Raspberry Pi 3 has the Cortex-A53; Graviton 2 has the Neoverse N1."""
    file = make(*QUICK[0], tmp_path)[1]
    (tmp_path / "a.pgm").write_bytes(b"P5 28 28 255\n" + bytes(28 * 28))
    command = [*map(str, [*qemu(processor), visq_run, file, tmp_path / "a.pgm"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"({fastest}, 1 thread)" in done.stdout
    for level in LEVELS[: LEVELS.index(fastest)]:
        done = subprocess.run([*command, "--level", level], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"the instruction set {level} is not available here; available: {fastest}, " in done.stderr


def test_a_level_of_another_kind_of_processor_is_refused(visq_run: Path, tmp_path: Path) -> None:
    command = [*qemu("max"), visq_run, tmp_path, tmp_path, "--level", "avx2"]
    done = subprocess.run([*map(str, command)], capture_output=True, check=False)
    assert done.returncode == 1 and done.stderr
