"""Several processes: the same bytes as one process, on every rank; a rank that dies ends the others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.other_device import HAS_GPU

WORKER = Path(__file__).with_name("distributed_worker.py")

#: One of each way to accumulate: ranges and groups, layer search, histograms, scan outputs, factors, bias correction.
RECIPES = ["similarity-w4a4", "kscaled-w4a4", "qmamba-w4a4", "visq-w4a4", "percentile-w6a6"]


def start(world: int, out: Path, work: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(out), str(work), *arguments],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def test_ranks_agree_with_one_process_to_the_last_bit(tmp_path: Path) -> None:
    """11 images in batches of 4 on 2 ranks: the last round has a batch for one of them only."""
    alone = start(1, tmp_path / "alone", tmp_path / "work1", *RECIPES)
    together = start(2, tmp_path / "together", tmp_path / "work2", *RECIPES)
    for process in alone + together:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    expected, *found = (json.loads((tmp_path / name).read_text()) for name in ("alone.0", "together.0", "together.1"))
    assert sorted(expected) == sorted(RECIPES)
    assert found == [expected, expected]


@pytest.mark.slow
@pytest.mark.skipif(HAS_GPU, reason="the stand-in gives the CPU's bits, a GPU its own")
def test_ranks_away_from_the_cpu_agree_with_it(tmp_path: Path) -> None:
    """Each rank has a device of its own; what they exchange goes by the CPU."""
    alone = start(1, tmp_path / "alone", tmp_path / "work1", *RECIPES[:2])
    together = start(2, tmp_path / "together", tmp_path / "work2", *RECIPES[:2], "--elsewhere")
    for process in alone + together:
        _, errors = process.communicate(timeout=580)
        assert process.returncode == 0, errors
    expected = (tmp_path / "alone.0").read_text()
    assert [(tmp_path / f"together.{rank}").read_text() for rank in range(2)] == [expected] * 2


@pytest.mark.slow
def test_more_ranks_than_batches(tmp_path: Path) -> None:
    alone = start(1, tmp_path / "alone", tmp_path / "work1", "kscaled-w4a4")
    together = start(4, tmp_path / "together", tmp_path / "work4", "kscaled-w4a4")
    for process in alone + together:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    expected = (tmp_path / "alone.0").read_text()
    assert [(tmp_path / f"together.{rank}").read_text() for rank in range(4)] == [expected] * 4


def test_a_rank_that_dies_ends_the_others_with_a_clear_message(tmp_path: Path) -> None:
    survivor, victim = start(2, tmp_path / "out", tmp_path / "work", "minmax-w8a8", "--die-at", "1")
    victim.communicate(timeout=120)
    died = time.monotonic()
    _, errors = survivor.communicate(timeout=60)
    assert victim.returncode == 7
    assert survivor.returncode == 1
    assert "another process of this run has ended" in errors
    assert time.monotonic() - died < 60
