"""No function compiled for one instruction set can take the place of another's.

The linker keeps one copy of an inline function or a template's instance. If two objects of different instruction sets
held the same one, a machine could run code that it has no instructions for. So every symbol of a level's object must be
named after the level (`namespace visq::...::VISQ_LEVEL`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not shutil.which("nm"), reason="needs nm, of the compiler's tools")


def level_objects() -> dict[str, list[Path]]:
    """Returns the objects of every level in the newest build folder."""
    builds = sorted(ROOT.glob("build/cp*/CMakeCache.txt"), key=lambda path: path.stat().st_mtime)
    found: dict[str, list[Path]] = {}
    for folder in builds[-1].parent.glob("csrc/CMakeFiles/*_*.dir") if builds else ():
        match = re.fullmatch(r"(?:engine|ops)_(\w+)\.dir", folder.name)
        if match and (objects := list(folder.glob("**/*.o"))):
            found.setdefault(match[1], []).extend(objects)
    return found


def foreign_symbols(level: str, path: Path) -> list[str]:
    """Returns the symbols an object defines, for others to use, that are not named after its level."""
    done = subprocess.run(["nm", "--demangle", "--defined-only", path], capture_output=True, text=True, check=True)
    symbols = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines() if line.strip()]
    # Lower case: local to the object (but for weak `v`, `w` and unique `u`). DW.ref: a pointer, the same everywhere.
    shared = [name for kind, name in symbols if kind.isupper() or kind in "uvw"]
    return [name for name in shared if f"::{level}::" not in name and not name.startswith("DW.ref.")]


def test_every_symbol_of_a_level_is_named_after_it() -> None:
    objects = level_objects()
    if not objects:
        pytest.skip("needs the build folder of `make setup`")
    assert "scalar" in objects
    for level, paths in objects.items():
        for path in paths:
            assert foreign_symbols(level, path) == [], path


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize(
    ("definition", "found"),
    [
        ("inline int f(int x) { return x + 1; }", ["f(int)"]),
        ("template <class T> int f(T x) { return x + 1; }", ["int f<int>(int)"]),
        ("namespace visq::avx2 { inline int f(int x) { return x + 1; } } using visq::avx2::f;", []),
        ("static inline __attribute__((always_inline)) int f(int x) { return x + 1; }", []),
    ],
)
def test_a_function_that_could_be_shared_is_found(tmp_path: Path, definition: str, found: list[str]) -> None:
    source = tmp_path / "unit.cpp"
    source.write_text(f"{definition}\nnamespace visq::avx2 {{ int user(int x) {{ return f(x); }} }}\n")
    subprocess.run(["g++", "-std=c++17", "-O0", "-c", source, "-o", tmp_path / "unit.o"], check=True)
    assert foreign_symbols("avx2", tmp_path / "unit.o") == found
