"""What stands in the way of a page is one sentence, before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import visq_command
from visq.errors import VisqError
from visq.web import compile_library, compiled, write_page
from visq.web.page import hash_of, plain


def test_without_emscripten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None if name == "emcmake" else "/usr/bin/x")
    with pytest.raises(VisqError, match=r"emcmake missing \(Debian: apt install emscripten cmake\)"):
        compile_library(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_in_an_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "lib" / "visq" / "web" / "compiled.py"))
    with pytest.raises(VisqError, match="run it in a checkout of visq"):
        compile_library()


def test_source_that_does_not_compile_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for emscripten, which need not be installed."""
    for name in compiled.NEEDED:
        (tmp_path / name).write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(VisqError, match=r"emcmake failed in .*web-wasm128: x.cpp:1: error: no such thing"):
        compile_library(tmp_path)


def test_a_page_without_networks() -> None:
    with pytest.raises(VisqError, match="a page needs an artifact at least"):
        write_page([], Path("page.html"))


def test_a_script_that_would_end_its_element() -> None:
    with pytest.raises(VisqError, match="would end the page's element"):
        plain("x = '</SCRIPT>'")
    assert plain("a\r\nb") == "a\nb"
    # echo -n 'a' | openssl dgst -sha256 -binary | base64
    assert hash_of("a") == "sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs="


def test_the_command_measures_nothing_with_web() -> None:
    done = visq_command("demo", "--web", "--limit", "10")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: --web writes a page and measures nothing; leave --full and --limit out"
