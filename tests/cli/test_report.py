"""`visq report`: its files, and every error in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Workplace, visq_here
from visq.cli.main import run


def test_page_and_json(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("report", workplace.artifact, "--data", workplace.images, "--fp32", workplace.checkpoint)
    few = ("--limit", 8, "--site-images", 2, "--threads", 1)
    said = visq_here(capfd, *arguments, *few, "-o", tmp_path / "a.html", "--json", tmp_path / "a.json")
    assert "no latency: it was not measured; add --time" in said and "a.html: " in said
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["kind"] == "artifacts" and document["artifacts"][0]["decisions"]["images"] == 8
    alone = visq_here(capfd, *arguments, *few, "-o", tmp_path / "b.html", "--json", "-")
    assert json.loads(alone) == document
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json", "b.html"]


def test_a_class_name_is_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import visq
    from tests.cli.conftest import tiny_model, write_images
    from visq.models import save_checkpoint

    images, name = write_images(tmp_path / "images"), "<script>alert(1)<b>"
    (images / "class0").rename(images / name)
    save_checkpoint(tiny_model(), tmp_path / "m.safetensors")
    classes = [name, "class1", "class2", "class3"]
    model = visq.load_model("vim", tmp_path / "m.safetensors", classes=classes)
    visq.quantize(model, "minmax-w8a8", str(images), samples=4, out=tmp_path / "a")
    original = ("--fp32", tmp_path / "m.safetensors")
    visq_here(capfd, "report", tmp_path / "a", "--data", images, *original, "-o", tmp_path / "a.html")
    html = (tmp_path / "a.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in html and html.count("<script") == 1


def refused(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run([str(argument) for argument in ("report", *arguments)]) == 1
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err


def test_errors_are_one_line(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page, empty, text = tmp_path / "page.html", tmp_path / "empty", tmp_path / "text.json"
    empty.mkdir()
    text.write_text('{"sites": []}')
    artifact = workplace.artifact
    assert "empty is not an artifact; a report takes" in refused(capfd, empty, "-o", page)
    assert "nowhere is not an artifact" in refused(capfd, tmp_path / "nowhere", "-o", page)
    assert "its folder does not exist" in refused(capfd, artifact, "-o", tmp_path / "nowhere" / "page.html")
    assert "it is a folder; name an HTML file" in refused(capfd, artifact, "-o", empty)
    assert "text.json is not a report of `visq compare --json`" in refused(capfd, text, "-o", page)
    assert "text.json is a file; a report takes artifacts' folders or one" in refused(capfd, artifact, text, "-o", page)
    assert "no such folder or tar" in refused(capfd, artifact, "--data", tmp_path / "nowhere", "-o", page)
    assert "unknown model 'nothing'" in refused(
        capfd, artifact, "--data", workplace.images, "--fp32", "nothing", "-o", page
    )
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("config.json", "model.safetensors"):
        (damaged / name).write_bytes((artifact / name).read_bytes()[:-40])
    assert "config.json" in refused(capfd, damaged, "-o", page)
    assert not page.exists()
