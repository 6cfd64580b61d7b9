"""The documentation: links lead somewhere, code on the pages runs, every file of results is named."""

from __future__ import annotations

import html
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import visq
from visq.cli import demo
from visq.ops import backends

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/results/README.md")
    if path.is_file()
)
RESULTS = ROOT / "benchmarks" / "results"


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page that lie in this repository."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in found if not target.startswith(("http:", "https:"))]


def anchors(page: Path) -> set[str]:
    """Anchors that a page's headings have, as Git hosts make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One heading, two\n[a](#one-heading-two) [b](gone.md) ![c](https://example.org/c.svg)\n")
    assert links(page) == ["#one-heading-two", "gone.md"] and anchors(page) == {"one-heading-two"}


def test_the_tests_that_trust_names_exist() -> None:
    named = re.findall(r"`([\w/]+)::(test_\w+)`", (ROOT / "docs/trust.md").read_text())
    gone = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / f"tests/{file}.py").read_text()]
    assert gone == [] and len(named) > 50


def test_every_file_of_results_is_named() -> None:
    named = set(re.findall(r"`([\w.]+)`", (RESULTS / "README.md").read_text()))
    files = {path.name for path in RESULTS.iterdir()} - {"README.md"}
    assert files - named == set()
    assert {name for name in named if name.endswith((".json", ".md"))} - files == set()


def test_the_picture_shows_what_the_demo_prints() -> None:
    text = html.unescape((ROOT / "docs" / "images" / "demo.svg").read_text()).replace("\xa0", " ")
    assert "make demo" in text
    assert [name for name in (*demo.HEADER, "fp32", *demo.RECIPES) if name not in text] == []
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")  # it loads nothing from elsewhere


def test_the_kernel_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add-a-kernel.md").read_text(), flags=re.S)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    try:
        for block in blocks:
            exec(block, names)
        assert backends.describe()["selective_scan"].kernel == "short"
    finally:
        backends.unregister("selective_scan", "short")


REFERENCE = re.findall(r"^::: (visq[\w.]*)$", (ROOT / "docs" / "api.md").read_text(), flags=re.M)


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_names_what_there_is(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    assert found.__doc__ and found.__doc__.strip()[0].isupper()


def test_the_reference_has_the_whole_front_door() -> None:
    assert {f"visq.{name}" for name in visq.__all__} - {"visq.__version__"} <= set(REFERENCE)


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    page = (tmp_path / "api" / "index.html").read_text()
    assert all(f'id="{name}"' in page for name in REFERENCE)
