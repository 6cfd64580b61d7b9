"""Runs the real command in a process of its own, on a tiny random checkpoint and a folder of images."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visq
from visq.cli.main import run
from visq.models import VisionMamba, create_model, save_checkpoint

GEOMETRY = dict(image_size=16, patch_size=4, stride=4, channels=1, embed_dim=16, depth=2, d_state=4, num_classes=4)


@dataclass(frozen=True)
class Workplace:
    """Holds the inputs of all tests, made once for each worker."""

    checkpoint: Path
    images: Path
    artifact: Path

    @property
    def model(self) -> list[str]:
        return ["--model", "vim", "--checkpoint", str(self.checkpoint)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(visq.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def visq_process(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "visq.cli", *map(str, arguments)]
    # Tests that run in the background ignore Ctrl-C, and their children would inherit that.
    options.setdefault("preexec_fn", functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), **options
    )  # type: ignore[call-overload]


def visq_command(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    process = visq_process(*arguments, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def visq_here(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command in this process, which is quicker than starting one; it must succeed. Returns its stdout."""
    threads = torch.get_num_threads()
    try:
        code = run([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
    captured = capfd.readouterr()
    assert code == 0 and captured.err == "", captured
    return captured.out


def kill_when(
    process: subprocess.Popen[str], condition: Callable[[], bool], number: int = signal.SIGKILL
) -> subprocess.CompletedProcess[str]:
    """Sends a signal as soon as `condition` holds; fails when the process ends before."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if condition():
            process.send_signal(number)
            out, err = process.communicate()
            return subprocess.CompletedProcess(process.args, process.returncode, out, err)
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    raise AssertionError("the condition never held")


def tiny_model(seed: int = 0) -> VisionMamba:
    torch.manual_seed(seed)
    return create_model("vim", **GEOMETRY).eval().requires_grad_(False)


def write_images(folder: Path, count: int = 24, side: int = 16) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class{i % 4}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("cli")
    place = Workplace(folder / "tiny.safetensors", write_images(folder / "images"), folder / "artifact")
    save_checkpoint(tiny_model(), place.checkpoint)
    visq.quantize(
        visq.load_model("vim", place.checkpoint), "minmax-w8a8", str(place.images), samples=8, out=place.artifact
    )
    return place
