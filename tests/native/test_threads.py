"""Checks the number of threads a process may use: by affinity, by control group, and by the caller's wish."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from visq.errors import VisqError
from visq.native import threads
from visq.native.threads import cgroup_quota, checked_threads, usable_threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_affinity_limits_the_threads() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("quota, expected", [(0.5, 1), (1.5, 2), (1.0, 1), (1000.0, None)])
def test_a_quota_limits_the_threads(quota: float, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cgroup_quota", lambda: None)
    without = usable_threads()
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
    assert usable_threads() == (without if expected is None else min(without, expected))


def groups(root: Path, own: str, files: dict[str, str]) -> float | None:
    """Returns the quota of a made-up tree of control groups."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "own").write_text(own)
    return cgroup_quota(root, root / "own")


def test_version_2_takes_the_smallest_limit_of_all_parents(tmp_path: Path) -> None:
    files = {"cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n", "a/b/cpu.max": "400000 100000\n"}
    assert groups(tmp_path, "0::/a/b\n", files) == 1.5


def test_version_1(tmp_path: Path) -> None:
    files = {"cpu/docker/cpu.cfs_quota_us": "250000\n", "cpu/docker/cpu.cfs_period_us": "100000\n"}
    assert groups(tmp_path, "4:cpu,cpuacct:/docker\n3:memory:/docker\n", files) == 2.5
    files["cpu/docker/cpu.cfs_quota_us"] = "-1\n"
    assert groups(tmp_path, "4:cpu,cpuacct:/docker\n", files) is None


@pytest.mark.parametrize("text", ["", "max", "1 0", "a b", "1"])
def test_a_limit_that_cannot_be_read_is_none(text: str, tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/\n", {"cpu.max": text}) is None


def test_what_is_asked_for() -> None:
    assert checked_threads(None) == usable_threads()
    assert checked_threads(1) == 1 and checked_threads(1024) == 1024
    for wrong in (0, -1, 1025, 1.5, "2", True):
        with pytest.raises(VisqError, match="threads must be a whole number from 1 to 1024, not"):
            checked_threads(wrong)  # type: ignore[arg-type]
