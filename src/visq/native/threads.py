"""Counts the threads this process may use, and checks a number of threads."""

from __future__ import annotations

import math
import os
from pathlib import Path

from visq.errors import VisqError

MAX_THREADS = 1024

_CGROUP = Path("/sys/fs/cgroup")


def usable_threads() -> int:
    """Returns the processors this process may keep busy: the smaller of its affinity and its control group's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def checked_threads(threads: int | None) -> int:
    """Returns `threads`, or `usable_threads()` for None.

    Raises:
        VisqError: `threads` is not a whole number from 1 to 1024.
    """
    if threads is None:
        return usable_threads()
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise VisqError(f"threads must be a whole number from 1 to {MAX_THREADS}, not {threads!r}")
    return threads


def cgroup_quota(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Returns the processors a Linux control group grants this process, for example 1.5; None where it sets no limit.

    Limits of parent groups apply too, so the smallest one counts. Reads version 2 (`cpu.max`) and version 1.
    """
    found = [quota for folder in _groups(root, own) for quota in (_version2(folder), _version1(folder)) if quota]
    return min(found, default=None)


def _groups(root: Path, own: Path) -> list[Path]:
    """Returns the folders of the groups this process is in, and of their parents."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return [root]
    folders = [root, root / "cpu"]
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        parts = Path(path).parts[1:]
        folders += [base.joinpath(*parts[: n + 1]) for n in range(len(parts))]
    return folders


def _version2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _version1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
