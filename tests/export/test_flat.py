"""`visq export --format visq`: a file with the engine's bits, whole or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

import visq
from tests.cli.conftest import visq_command
from visq.errors import VisqError
from visq.export import artifact as exporting
from visq.export import export
from visq.native.extension import available

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flat") / "artifact"
    visq.quantize("vim_nano_fmnist", "minmax-w8a8", "fashion-mnist", samples=8, out=folder, check=False)
    return folder


def test_the_command_writes_the_file_and_compares_bits(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.visq"
    done = visq_command("export", artifact, "--format", "visq", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "logits are the engine's bits" in done.stdout and "inf dB" in done.stdout
    assert out.read_bytes().startswith(b"\x89VISQ")
    assert [path.name for path in tmp_path.iterdir()] == ["net.visq"]


def test_a_classifier_has_no_other_size(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(VisqError, match="a size is for networks that return images"):
        export(artifact, tmp_path / "net.visq", format="visq", size=(56, 56))


def test_same_artifact_same_bytes(artifact: Path, tmp_path: Path) -> None:
    first, second = (export(artifact, tmp_path / name, format="visq").path.read_bytes() for name in ("a", "b"))
    assert first == second


def test_other_logits_leave_no_file(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(content: bytes, threads: int) -> tuple[object, str]:
        run, version = exporting.open_flat(content, threads)
        return lambda images: run(images) + 1, version

    monkeypatch.setitem(
        exporting.FORMATS, "visq", exporting.Format(exporting.to_flat, lambda: {"visq": wrong}, True, "")
    )
    with pytest.raises(VisqError, match="logits are not the engine's"):
        export(artifact, tmp_path / "net.visq", format="visq")
    assert list(tmp_path.iterdir()) == []
