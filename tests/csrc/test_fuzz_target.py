"""The fuzz target compiles and runs: a short turn of `make fuzz`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from visq.native.extension import available

ROOT = Path(__file__).parents[2]
MISSING = [name for name in ("clang++", "cmake") if not shutil.which(name)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="needs the extension"),
    pytest.mark.skipif(bool(MISSING), reason=f"not fuzzed: {', '.join(MISSING)} missing"),
]


def test_a_short_turn_finds_nothing_and_goes_deep(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tools" / "fuzz.py", "--runs", "2000", "--folder", tmp_path]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 2000 runs" in done.stderr
    # The seeds alone reach four thousand edges: they are opened and run, not refused.
    coverage = [int(edges) for edges in re.findall(r"cov: (\d+)", done.stderr)]
    assert max(coverage) > 4000
