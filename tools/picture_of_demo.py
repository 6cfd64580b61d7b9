"""Runs the demo and draws what it prints: `python tools/picture_of_demo.py` writes docs/images/demo.svg.

    --text FILE    draws a transcript of `make demo` instead of running it

Run it on a machine that does nothing else, because the picture shows times.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "demo.svg"
#: As rich has it, less the fonts it would load from the network.
TEMPLATE = re.sub(r"@font-face \{\{.*?\}\}\s*|<!--.*?-->\s*", "", CONSOLE_SVG_FORMAT, flags=re.S)


def transcript() -> str:
    """Returns what the demo of this checkout prints."""
    command = [sys.executable, "-m", "visq", "demo", "--out", "build/demo"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def draw(text: str) -> str:
    """Returns a terminal window with `text` in it as SVG."""
    lines = text.rstrip("\n").splitlines()
    console = Console(record=True, file=io.StringIO(), width=max(map(len, lines)) + 1, force_terminal=True)
    console.print(Text("$ make demo", style="bold green"))
    for line in lines:
        # The lines that carry the message stand out: FP32 above, the method in question below.
        console.print(Text(line, style="bold" if line.startswith(("fp32", "kscaled")) else ""))
    return console.export_svg(title="visq", code_format=TEMPLATE, unique_id="demo")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", type=Path, help="a transcript of `make demo`")
    given = parser.parse_args().text
    PICTURE.write_text(draw(given.read_text() if given else transcript()), encoding="utf-8")
    print(f"{PICTURE}, {PICTURE.stat().st_size:,} bytes")
