"""docs/cli.md is what tools/cli_reference.py generates."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_committed_reference_is_the_generated_one() -> None:
    generated = runpy.run_path(str(ROOT / "tools" / "cli_reference.py"))["reference"]()
    assert (ROOT / "docs" / "cli.md").read_text() == generated, "run `python tools/cli_reference.py`"


def test_every_option_of_a_command_is_in_it() -> None:
    sections = (ROOT / "docs" / "cli.md").read_text().split("\n## visq ")
    predict = next(section for section in sections if section.startswith("predict\n"))
    assert "    visq predict DIR IMAGE... [OPTIONS]" in predict
    assert all(f"`{option}" in predict for option in ("DIR", "IMAGE...", "--top N", "--threads N", "--json FILE"))
