"""Two runs with one `--out`: the second is told, and a killed run lets go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import visq
from visq.calibrate.stage_store import clear
from visq.data import Dataset
from visq.errors import VisqError
from visq.models import VisionMamba
from visq.pipeline import quantize
from visq.pipeline.lock import held
from visq.recipes import get_recipe

HOLD = """
import sys, time
from pathlib import Path
from visq.pipeline.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    told = rf"is in use by another run \(process {os.getpid()} on .* since \d{{4}}-"
    with held(tmp_path / "a"):
        with pytest.raises(VisqError, match=told), held(tmp_path / "a"):
            pass
        with held(tmp_path / "b"):
            pass
    with held(tmp_path / "a"):
        pass


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    with held(tmp_path / "a"):
        (tmp_path / "a/lock").unlink()
        (tmp_path / "a").rmdir()
        with held(tmp_path / "a"):
            assert (tmp_path / "a/lock").exists()


def test_a_killed_process_lets_go(
    model: VisionMamba, images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "a.calibration"
    environment = {**os.environ, "PYTHONPATH": str(Path(visq.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(work)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(VisqError, match=rf"a\.calibration is in use .*process {process.pid} "):
            quantize(model, get_recipe("minmax-w8a8"), images, out=tmp_path / "a")
        assert work.exists() and not (tmp_path / "a").exists()
        process.kill()
    quantize(model, get_recipe("minmax-w8a8"), images, out=tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_kill_while_the_state_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left at any moment, no finished stage lacks its inputs and the folder is known as a calibration's."""
    names = ["stage-000.safetensors", "stage-001.safetensors", "stream-002", "student-002", "run.json", "lock"]
    removed: list[str] = []
    for name in names:
        (tmp_path / name).mkdir() if "." not in name and name != "lock" else (tmp_path / name).touch()
    unlink, rmtree = Path.unlink, shutil.rmtree

    def seen(path: Path) -> None:
        left = {entry.name for entry in tmp_path.iterdir()}
        assert "run.json" in left or left == {"lock"}
        assert "stream-002" in left or not any(name.startswith("stage") for name in left)
        removed.append(path.name)

    def watched_unlink(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        seen(path)

    def watched_rmtree(path: Path, ignore_errors: bool = False) -> None:
        rmtree(path, ignore_errors)
        seen(path)

    monkeypatch.setattr(Path, "unlink", watched_unlink)
    monkeypatch.setattr(shutil, "rmtree", watched_rmtree)
    clear(tmp_path)
    assert sorted(removed) == sorted(names[:-1]) and [path.name for path in tmp_path.iterdir()] == ["lock"]
