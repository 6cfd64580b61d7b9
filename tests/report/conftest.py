"""A report about the embedded model, made once by the real command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import visq
from tests.cli.conftest import visq_command

#: Enough for every part of the page, and no more.
FEW = ("--limit", 24, "--site-images", 2, "--threads", 1)


@dataclass(frozen=True)
class Report:
    """An artifact, its page and the page's numbers, and what the command said."""

    artifact: Path
    page: Path
    document: dict[str, Any]
    said: str

    @property
    def html(self) -> str:
        return self.page.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded network, quantized with four images."""
    folder = tmp_path_factory.mktemp("nano") / "nano-w4a4"
    visq.quantize("vim_nano_fmnist", "visq-w4a4", "fashion-mnist", samples=4, batch_size=4, out=folder)
    return folder


@pytest.fixture(scope="session")
def made(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("report")
    page, numbers = folder / "report.html", folder / "report.json"
    done = visq_command("report", nano, "-o", page, "--json", numbers, *FEW)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return Report(nano, page, json.loads(numbers.read_text()), done.stdout)
