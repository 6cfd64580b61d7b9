"""Counts the instructions of the engine's hot loops, from the disassembly of a level's object.

    python tools/instruction_counts.py OBJECT ... [--objdump aarch64-linux-gnu-objdump]

OBJECT is `engine_level.cpp.o` of a level, below `CMakeFiles/engine_<level>.dir` of a build folder. Prints, for each,
the instructions of a state update (fused scan, four registers in lockstep) and of a multiply-add (integer linear
layer). Loops inside the loop are left out: a step of a scan rarely enters the only one there is.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Level:
    """Elements of a vector of floats, and mnemonics that only the loops in question repeat."""

    lanes: int
    scan: str
    product: str
    panel: int = 4
    bytes: int = 4  # of one product


LEVELS = {
    "avx512vnni": Level(16, "vpmulhuw", "vpdpbusd"),
    "neon": Level(4, "umull2?", "smull2?", bytes=2),
    "neondot": Level(4, "umull2?", "sdot"),
    "i8mm": Level(4, "umull2?", "usdot"),
}
#: States of a loop's turn: four registers of two states a channel. Rows of a tile of a linear layer.
STATES_OF_CHANNEL, ROWS = 8, 6
_LINE = re.compile(r"^\s+([0-9a-f]+):\t(?:[0-9a-f]+ )*\s*([a-z][a-z0-9.]*)\s*(.*)$")


def functions(objdump: str, path: Path) -> dict[str, list[tuple[int, str, str]]]:
    """Returns (address, mnemonic, operands) of every instruction, by function."""
    command = [objdump, "--disassemble", "--demangle", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[tuple[int, str, str]]] = {}
    name = ""
    for line in text.splitlines():
        if heading := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            name = heading[1]
        elif match := _LINE.match(line):
            found.setdefault(name, []).append((int(match[1], 16), match[2], match[3]))
    return found


def loops(code: list[tuple[int, str, str]]) -> list[tuple[int, int]]:
    """Returns (first, last) positions of every loop: what a branch backwards repeats."""
    places = {address: at for at, (address, _, _) in enumerate(code)}
    found = []
    for at, (_, mnemonic, operands) in enumerate(code):
        target = re.search(r"\b([0-9a-f]+) <", operands)
        if target and re.match(r"j|b\.|b$|cbn?z|tbn?z", mnemonic):
            first = places.get(int(target[1], 16), at)
            if first < at:
                found.append((first, at))
    return found


def hottest(code: list[tuple[int, str, str]], marker: str) -> tuple[int, int]:
    """Returns (instructions, markers) of the loop with most markers of its own, loops inside it left out."""
    every = loops(code)
    best = (0, 0)
    for first, last in every:
        inner = {i for a, b in every if first <= a and b <= last and (a, b) != (first, last) for i in range(a, b + 1)}
        own = [code[i][1] for i in range(first, last + 1) if i not in inner]
        markers = sum(bool(re.fullmatch(marker, mnemonic)) for mnemonic in own)
        if markers > best[1] or (markers == best[1] and markers and len(own) < best[0]):
            best = (len(own), markers)
    return best


def count(objdump: str, path: Path) -> str:
    name = path.parent.parent.name.removeprefix("engine_").removesuffix(".dir")
    level = LEVELS[name]
    rows = []
    for function, code in functions(objdump, path).items():
        if "fused_scan_block" in function:
            instructions, markers = hottest(code, level.scan)
            states = STATES_OF_CHANNEL * level.lanes
            rows.append(
                f"state update: {instructions} / {states} = {instructions / states:.3f} ({markers} {level.scan})"
            )
        if "int_linear" in function and "Elements)0" in function:
            instructions, markers = hottest(code, level.product)
            products = ROWS * level.panel * level.lanes * level.bytes
            rows.append(
                f"multiply-add: {instructions} / {products} = {instructions / products:.4f} ({markers} {level.product})"
            )
    return "\n".join([name, *sorted(rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", type=Path, metavar="OBJECT")
    parser.add_argument("--objdump", default="objdump")
    arguments = parser.parse_args()
    for path in arguments.objects:
        print(count(arguments.objdump, path))


if __name__ == "__main__":
    main()
