"""The rooms of the package: imports point downwards in the table of docs/architecture.md, and never in a circle."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "visq"
TABLE = ROOT / "docs" / "architecture.md"


def module_files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in (*SOURCE.rglob("*.py"), SOURCE / "_C.pyi"):
        parts = ("visq", *path.relative_to(SOURCE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = module_files()


def imports_of(tree: ast.AST, module: str, is_package: bool, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that a module's source imports, typing-only and local imports included."""
    found = set()
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            names = [f"{base}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else base for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in modules}


def arrows() -> dict[str, set[str]]:
    """What each module imports."""
    return {
        name: imports_of(ast.parse(path.read_text()), name, path.name == "__init__.py", MODULES)
        for name, path in MODULES.items()
    }


def room_of(module: str) -> str:
    """`visq.quant.site` is in the room `quant`; the package itself is the front door, above all rooms."""
    return module.split(".")[1] if "." in module else "visq"


def floors(table: str) -> dict[str, int]:
    """The floor of every room, from the first column of the table of rooms: the first row is the top."""
    rows = re.findall(r"^\| ((?:`\w+/?(?:\.py)?`(?:, )?)+) \|", table, flags=re.M)
    return {
        room.strip("/").removesuffix(".py"): floor
        for floor, row in enumerate(rows)
        for room in re.findall(r"`(\w+/?(?:\.py)?)`", row)
    }


def upward(edges: dict[str, set[str]], order: dict[str, int]) -> list[str]:
    """Arrows between rooms that do not point downwards."""
    return sorted(
        f"{source} imports {target}"
        for source, targets in edges.items()
        for target in targets
        if room_of(source) != room_of(target) and order[room_of(source)] >= order[room_of(target)]
    )


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, directly or through others. A package's `__init__` stands for its parts."""
    done: set[str] = set()
    path: list[str] = []
    found: list[str] = []

    def visit(module: str) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            path.append(module)
            for target in sorted(edges[module]):
                visit(target)
            done.add(path.pop())

    for module in sorted(edges):
        visit(module)
    return found


def test_every_room_is_in_the_table() -> None:
    order = floors(TABLE.read_text())
    assert {room_of(module) for module in MODULES} - order.keys() == set()
    assert order.keys() - {room_of(module) for module in MODULES} == set()


def test_imports_point_downwards() -> None:
    assert upward(arrows(), floors(TABLE.read_text())) == []


def test_there_is_no_circle() -> None:
    assert circles(arrows()) == []


def test_a_wrong_arrow_and_a_circle_would_be_found() -> None:
    order = {"models": 0, "quant": 1}
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from visq.models.vim import Vim\n"
    modules = {name: Path() for name in ("visq.models.vim", "visq.quant.site")}
    found = imports_of(ast.parse(source), "visq.quant.site", False, modules)
    assert upward({"visq.quant.site": found, "visq.models.vim": set()}, order) == [
        "visq.quant.site imports visq.models.vim"
    ]
    edges = {"visq.quant.site": found, "visq.models.vim": {"visq.quant.site"}}
    assert circles(edges) == ["visq.models.vim -> visq.quant.site -> visq.models.vim"]
