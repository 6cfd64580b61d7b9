"""The counts of docs/engine.md come from loops that are found, not from whatever loop comes first."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.csrc.test_shared_symbols import ROOT, level_objects


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump, of the compiler's tools")
def test_both_hot_loops_are_found_whole() -> None:
    objects = [path for path in level_objects().get("avx512vnni", []) if path.name == "engine_level.cpp.o"]
    if not objects:
        pytest.skip("needs the build folder of `make setup` on x86")
    command = [sys.executable, ROOT / "tools" / "instruction_counts.py", *objects]
    said = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    # A tile of 6 rows by 4 vectors, and 4 registers with 4 products each.
    assert "(24 vpdpbusd)" in said and "(16 vpmulhuw)" in said, said
