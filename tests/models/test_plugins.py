"""Tests networks of other packages: entry points find them, and a failing import breaks nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from visq.models import FAMILIES, create_model, list_models, registry
from visq.models.family import families, load_plugins

NETWORK = """
from visq.models import ModelCard, register_family
from visq.models.dvmsr import DVMSRConfig, preprocess
from visq.models.family import FAMILIES
from visq.models.registry import register
from dataclasses import dataclass, replace

@dataclass(frozen=True)
class TinyConfig(DVMSRConfig):
    embed_dim: int = 8

register_family(replace(FAMILIES["dvmsr"], name="acme", title="Acme's", config=TinyConfig))

@register("acme_tiny")
def card():
    return ModelCard("acme_tiny", TinyConfig(depths=(1,)), preprocess(TinyConfig()))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Returns a folder of installed packages that visq has not looked into yet."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known, cards = dict(FAMILIES), dict(registry._CARDS)
    load_plugins.cache_clear()
    yield tmp_path
    for table, before in ((FAMILIES, known), (registry._CARDS, cards)):
        table.clear()
        table.update(before)  # type: ignore[arg-type]
    load_plugins.cache_clear()


def install(site: Path, package: str, code: str) -> None:
    """Writes what pip leaves: a module, and a record that names it as an entry point."""
    (site / f"{package}.py").write_text(code)
    record = site / f"{package}-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(f"[visq.models]\n{package} = {package}\n")


def test_an_installed_package_brings_a_family_and_a_card(site: Path) -> None:
    install(site, "visq_acme_networks", NETWORK)
    assert "acme_tiny" in {card.name for card in list_models()}
    assert families()["acme"].title == "Acme's"
    assert create_model("acme_tiny").eval()(torch.randn(1, 3, 4, 5)).shape == (1, 3, 16, 20)


def test_a_package_that_fails_is_one_warning(site: Path) -> None:
    install(site, "visq_broken_networks", "import nothing_of_that_name")
    with pytest.warns(UserWarning, match="networks 'visq_broken_networks' of visq_broken_networks .*nothing_of_that"):
        assert {"vim", "vmamba", "dvmsr"} <= families().keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list_models()
