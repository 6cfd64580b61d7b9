"""A run that is killed at any moment, and resumed, ends in the bytes of a run that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.test_loop import curve
from visq.train import TrainConfig, load_config, train

OVERRIDES = ["epochs=20"]
CODE = (
    "import sys, torch; from pathlib import Path; from visq.train import load_config, train; "
    "torch.set_num_threads(1); "
    f"train(load_config(Path(sys.argv[1]), {OVERRIDES}), out=Path(sys.argv[2]), progress=False)"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def kill(config: Path, out: Path, moment: Callable[[], bool], delay: float) -> bool:
    """Starts a run and kills it `delay` seconds after `moment` came; returns whether it was still running."""
    process = subprocess.Popen([sys.executable, "-c", CODE, str(config), str(out)])
    deadline = time.monotonic() + 120
    while not moment() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(delay)
    killed = process.poll() is None
    if killed:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert killed or process.returncode == 0
    return killed


def check_equal(whole: Path, parts: Path) -> None:
    assert curve(parts) == curve(whole)
    for name in ("model.safetensors", "config.yaml"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    first, second = (load_file(folder / "checkpoint.safetensors") for folder in (whole, parts))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def kill_and_resume(config_file: Path, tmp_path: Path, early: int, late: int, writing: int) -> tuple[int, int]:
    """Kills runs before the first checkpoint, at random moments after it, and while a file is written.

    Returns how many were killed before they had finished, and how many of those had a checkpoint.
    """
    config: TrainConfig = load_config(config_file, OVERRIDES)
    start = time.monotonic()
    train(config, out=tmp_path / "whole", progress=False)
    length = time.monotonic() - start
    rng, killed, resumed = random.Random(0), 0, 0
    for number, kind in enumerate(["early"] * early + ["late"] * late + ["writing"] * writing):
        out = tmp_path / f"{kind}{number}"
        delay, epoch = rng.random() * length * 0.8, rng.randrange(1, 20)
        if kind == "early":
            moment, delay = out.exists, 0.1 * rng.random() * length / 20
        elif kind == "late":
            moment = (out / "checkpoint.safetensors").exists
        else:

            def moment(out: Path = out, epoch: int = epoch) -> bool:
                log = out / "log.jsonl"
                return log.exists() and log.read_bytes().count(b"\n") == epoch

            delay = 0.002 * rng.random()  # the checkpoint is written right after the line
        if kill(config_file, out, moment, delay):
            killed += 1
            resumed += (out / "checkpoint.safetensors").exists()
        train(config, out=out, resume=True, progress=False)
        check_equal(tmp_path / "whole", out)
    return killed, resumed


def test_two_kills(config_file: Path, tmp_path: Path) -> None:
    killed, resumed = kill_and_resume(config_file, tmp_path, early=0, late=1, writing=1)
    assert killed >= 1 and resumed >= 1


@pytest.mark.slow
def test_twenty_five_kills(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    killed, resumed = kill_and_resume(config_file, tmp_path, early=4, late=13, writing=8)
    with capsys.disabled():
        print(f"{killed} of 25 runs killed, {resumed} of them after the first checkpoint")
    assert killed >= 20 and resumed >= 15
