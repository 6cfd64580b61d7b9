"""Checks that every way to set the number of threads refuses a number that makes no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import visq
from visq.cli.output import set_threads
from visq.errors import VisqError
from visq.native.threads import checked_threads

WRONG = [0, -1, 1025, 1.5, "2", True]


@pytest.mark.parametrize("threads", WRONG)
def test_numbers_that_make_no_sense(threads: Any) -> None:
    for door in (checked_threads, set_threads):
        with pytest.raises(VisqError, match="threads must be a whole number from 1 to 1024, not "):
            door(threads)


@pytest.mark.parametrize("threads", WRONG)
@pytest.mark.parametrize("backend", ["sim", "int"])
def test_loading(threads: Any, backend: str, tmp_path: Path) -> None:
    with pytest.raises(VisqError, match="threads must be a whole number from 1 to 1024"):
        visq.load(tmp_path, backend=backend, threads=threads)
