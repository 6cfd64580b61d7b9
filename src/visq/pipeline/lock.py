"""Lets one run at a time work on one `--out`, by a lock in the folder of its state."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from visq.calibrate.stage_store import LOCK
from visq.errors import VisqError


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made if need be, inside a `with` block. The kernel lets go when the process dies.

    Raises:
        VisqError: another process holds it; says which one.
    """
    path = folder / LOCK
    descriptor = _acquire(path)
    try:
        note = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """Returns the descriptor of the locked file."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # removed since it was made
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise VisqError(
                f"{path.parent} is in use by another run ({holder}); wait for it, or choose another --out"
            ) from None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # a run that has just ended removed the file after it was opened


def _holder(descriptor: int) -> str:
    """Returns what the lock says about its holder."""
    try:
        note = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {note['process']} on {note['host']} since {note['since']}"
    except (ValueError, KeyError, TypeError):
        return "it has just begun"


def _is_at(descriptor: int, path: Path) -> bool:
    """Returns whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
