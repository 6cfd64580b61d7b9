"""Files that a user names are read without waiting and without end; files that are written can be read by others."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from visq.errors import VisqError
from visq.files import read_bytes, read_text, replacing
from visq.train.config import load_config


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe.yaml"
    os.mkfifo(path)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("grün", encoding="utf-8")
    assert read_text(tmp_path / "a") == "grün"
    assert read_bytes(tmp_path / "a", most=5) == "grün".encode()
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_bytes(tmp_path / "a", most=4)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


def test_a_pipe_that_nobody_writes_to_is_empty(pipe: Path) -> None:
    assert read_bytes(pipe) == b""
    with pytest.raises(VisqError, match=r"pipe\.yaml: a training configuration is a mapping"):
        load_config(pipe)


def test_a_pipe_that_somebody_writes_to_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    text = b"x" * 300_000  # more than a pipe holds

    def write() -> None:
        with open(writing, "wb") as file:
            file.write(text)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert read_bytes(Path(f"/dev/fd/{reading}")) == text
    finally:
        os.close(reading)
        writer.join()


def test_a_device_without_an_end_is_refused() -> None:
    with pytest.raises(OSError, match="more than 1,000 bytes"):
        read_bytes(Path("/dev/zero"), most=1000)


@pytest.mark.parametrize("missing", ["none.yaml", "."])
def test_a_training_configuration_that_cannot_be_read_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(VisqError, match=r"cannot be read \((No such file or directory|Is a directory)\)$"):
        load_config(tmp_path / missing)


def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    with replacing(tmp_path / "weights.safetensors") as temporary:
        save_file({"x": np.zeros(3, np.float32)}, temporary)
    assert (tmp_path / "weights.safetensors").stat().st_mode == ordinary.stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"ordinary", "weights.safetensors"}
