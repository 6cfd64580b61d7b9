"""Processes that end by a signal: SIGTERM as Ctrl-C, and kill -9 at any moment costs no byte of the result."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import sys
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from tests.cli.conftest import Workplace, kill_when, visq_process
from tests.cli.test_bad_input import quantize
from visq.cli.main import run

RECIPE = "kscaled-w4a4"


def command(place: Workplace, out: Path) -> list[str]:
    return [*map(str, quantize(place, out, samples=20, recipe=RECIPE)), "--threads", "1"]


@pytest.mark.parametrize(
    "number, code, word", [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signals_keep_the_state(workplace: Workplace, tmp_path: Path, number: int, code: int, word: str) -> None:
    learning = quantize(workplace, tmp_path, samples=24, recipe="ptq4vm-w4a4")  # time enough to be interrupted
    work = tmp_path / "a.calibration"
    ended = kill_when(visq_process(*learning), lambda: (work / "stage-000.safetensors").exists(), number)
    assert ended.returncode == code
    assert ended.stderr == f"{word}; the same command with --resume goes on from here\n"
    assert work.exists() and not (tmp_path / "a").exists()


def test_sigterm_in_any_command_is_one_line(workplace: Workplace, tmp_path: Path) -> None:
    """Measuring has no state to resume; it ends in one line as well."""
    many = tmp_path / "many"
    shutil.copytree(workplace.images, many)
    process = visq_process("bench", workplace.artifact, "--seconds", 300, "--backends", "int", "--json", "-")
    started = time.monotonic()
    ended = kill_when(process, lambda: time.monotonic() - started > 20, signal.SIGTERM)
    assert ended.returncode == 143 and ended.stderr == "terminated\n" and ended.stdout == ""


def quietly(arguments: list[str]) -> None:
    """Runs a command in a child of the fork server, which has loaded torch already."""
    sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - the process ends with it
    sys.exit(run(arguments))


class Runs:
    """Starts the same command again and again, each in a process of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["visq.pipeline", "visq.cli.main", "tests.cli.test_killed"])

    def start(self, *more: str) -> ForkServerProcess:
        process = self.context.Process(target=quietly, args=([*self.arguments, *more],))
        process.start()
        return process

    def whole(self, *more: str) -> float:
        """Runs it to its end; returns the seconds."""
        start = time.monotonic()
        process = self.start(*more)
        process.join(600)
        assert process.exitcode == 0
        return time.monotonic() - start


def killed_at_random(place: Workplace, folder: Path, moments: int, seed: int) -> tuple[int, int]:
    """Kills a run at random moments and resumes it each time; each result must equal that of a run left alone.

    Returns (kills after the first checkpoint, results compared).
    """
    (folder / "whole").mkdir()
    (folder / "killed").mkdir()
    Runs(command(place, folder / "whole")).whole()
    runs, out = Runs(command(place, folder / "killed")), folder / "killed"
    seconds = runs.whole()
    work, draw = out / "a.calibration", random.Random(seed)
    late = compared = 0
    for moment in range(moments + 1):
        if (out / "a").exists():
            for name in ("config.json", "model.safetensors"):
                assert (out / "a" / name).read_bytes() == (folder / "whole/a" / name).read_bytes(), moment
            # A kill after the artifact was written may leave the calibration's folder beside it.
            assert {path.name for path in out.iterdir()} <= {"a", "a.calibration"}, moment
            shutil.rmtree(out / "a")
            compared += 1
        if moment == moments:
            break
        process = runs.start("--resume")
        if moment % 5:
            stage = work / f"stage-{draw.randrange(2):03d}.safetensors"
            while process.is_alive() and not stage.exists():
                time.sleep(0.002)
            process.join(draw.uniform(0, 0.1 * seconds))
        else:
            process.join(draw.uniform(0, 0.5 * seconds))
        alive = process.is_alive()
        late += alive and (work / "stage-000.safetensors").exists()
        process.kill()
        process.join()
        assert not alive or process.exitcode in (-signal.SIGKILL, 0)
        if (moment % 5 == 4 or moment == moments - 1) and not (out / "a").exists():
            runs.whole("--resume")
    return late, compared


def test_kill_at_three_moments(workplace: Workplace, tmp_path: Path) -> None:
    late, compared = killed_at_random(workplace, tmp_path, moments=3, seed=1)
    assert late >= 1 and compared >= 1


@pytest.mark.slow
def test_kill_at_fifty_moments(workplace: Workplace, tmp_path: Path) -> None:
    late, compared = killed_at_random(workplace, tmp_path, moments=50, seed=0)
    assert late >= 25 and compared >= 10
