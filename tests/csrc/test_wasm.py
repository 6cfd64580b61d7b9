"""libvisq for browsers: compiled by emscripten, run by Node, with the bits of the engine here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.csrc.flat_files import PAIRS, as_stored, make
from visq.native.extension import available
from visq.runtime.engine import Engine
from visq.web.compiled import NEEDED, compile_library

HERE = Path(__file__).parent
MISSING = [name for name in (*NEEDED, "node") if not shutil.which(name)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="needs the extension"),
    pytest.mark.skipif(bool(MISSING), reason=f"WebAssembly is not tested: {', '.join(MISSING)} missing"),
]


@pytest.fixture(scope="module")
def glue() -> dict[str, Path]:
    """The script beside each module, by level."""
    return compile_library()


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_logits_have_the_bits_of_the_engine(glue: dict[str, Path], tmp_path: Path, pair: tuple[str, str]) -> None:
    artifact, file = make(*pair, tmp_path)
    engine = Engine(artifact, threads=1)
    side = engine.preprocess.image_size
    grey = np.random.default_rng(0).integers(0, 256, (4, 1, side, side), dtype=np.uint8)
    prepared = np.repeat(grey, engine.preprocess.channels, axis=1)
    expected = as_stored(engine(engine.preprocess.normalize_array(prepared)))
    (tmp_path / "images").write_bytes(np.repeat(grey[:, 0, :, :, None], 3, axis=-1).tobytes())
    for level, script in glue.items():
        command = ["node", HERE / "wasm_run.js", script, file, tmp_path / "images", level]
        done = subprocess.run([*map(str, command)], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert np.array_equal(np.frombuffer(done.stdout, np.float32).reshape(expected.shape), expected), level


def test_what_is_wrong_is_one_sentence(glue: dict[str, Path], tmp_path: Path) -> None:
    file = make(*PAIRS[0].values[0], tmp_path)[1]  # type: ignore[misc]
    (tmp_path / "images").write_bytes(bytes(28 * 28 * 3))
    (tmp_path / "damaged").write_bytes(file.read_bytes()[:-64])
    for content, level, sentence in (
        ("damaged", "scalar", "the file is damaged: it has "),
        ("net.visq", "neon", "the instruction set neon is not available here; available: "),
    ):
        command = ["node", HERE / "wasm_run.js", glue["scalar"], tmp_path / content, tmp_path / "images", level]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and sentence in done.stderr, done.stderr
