"""`visq search` and `visq recipes --for`, as users type them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Workplace, kill_when, visq_here, visq_process
from visq.cli.main import run
from visq.search import front


def command(place: Workplace, out: Path, *more: object) -> list[object]:
    model = ["search", "vim", "--checkpoint", place.checkpoint, "--calib", place.images]
    return [*model, "--samples", 8, "--holdout", 8, "--base", "omse", "--bits", "4,8", "-o", out, "--threads", 1, *more]


@pytest.mark.slow
def test_killed_and_gone_on_it_ends_in_the_same_bytes(
    workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the recipe is used as any other, and the front is in the table, the JSON and the plot."""
    monkeypatch.setattr(front, "POINTS", 2)
    out, again = tmp_path / "a" / "mixed.yaml", tmp_path / "b" / "mixed.yaml"
    for folder in (out.parent, again.parent):
        folder.mkdir()
    wish = ("--budget", "bits=6", "--json", "-")
    measured = again.with_name("mixed.yaml.search") / "measured.jsonl"
    ended = kill_when(
        visq_process(*command(workplace, again, *wish)),
        lambda: measured.exists() and measured.stat().st_size > 1000,
        signal.SIGTERM,
    )
    assert ended.returncode == 143 and ended.stdout == "" and not again.exists()
    assert ended.stderr == "terminated; the same command goes on from here\n"
    first = visq_here(capfd, *command(workplace, out, *wish, "--plot", tmp_path / "front.svg"))
    second = visq_here(capfd, *command(workplace, again, *wish))
    assert out.read_bytes() == again.read_bytes() and json.loads(first) == json.loads(second)
    assert (tmp_path / "front.svg").read_text().startswith("<svg ")
    text = visq_here(capfd, *command(workplace, out, "--budget", "bits=6", "--overwrite"))
    assert "choice" in text and "w4a4" in text and "searched" in text and "bytes, decides" in text
    quantized = ["quantize", *workplace.model, "--recipe", out, "--calib", workplace.images, "--samples", 8]
    visq_here(capfd, *quantized, "--holdout", 8, "--out", tmp_path / "artifact")
    assert (tmp_path / "artifact" / "config.json").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        ((), "nothing limits the search; give --budget, --max-drop, or both"),
        (("--budget", "watts=3"), "--budget takes bytes=N"),
        (("--budget", "bits=5", "--base", "omse-w4a4"), "--base takes a packaged method without bits, not 'omse-w4a4'"),
        (("--budget", "bits=5", "--scope", "fused"), "recipe family omse has no scope 'fused'"),
        (("--max-drop", 1, "--minimize", "watts"), "--minimize takes bytes, bits or ms, not 'watts'"),
        (("--budget", "bits=5", "--bits", "8"), "--bits takes two or more different numbers from 2 to 8"),
        (("--budget", "bits=5", "-o", "recipe.txt"), "a recipe file ends in .yaml"),
    ],
)
def test_wrong_wishes_are_one_line(
    workplace: Workplace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    more: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    assert run([str(part) for part in command(workplace, tmp_path / "a.yaml", *more)]) == 1
    torch.set_num_threads(threads)
    captured = capfd.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out.count("\n") <= 3
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_is_there_is_kept(
    workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.yaml"
    out.write_text("mine")
    threads = torch.get_num_threads()
    assert run([str(part) for part in command(workplace, out, "--budget", "bits=5")]) == 1
    torch.set_num_threads(threads)
    assert "--overwrite" in capfd.readouterr().err and out.read_text() == "mine"


def test_recipes_for_a_need(capfd: pytest.CaptureFixture[str]) -> None:
    assert "visq-w8a8-fused" in visq_here(capfd, "recipes", "--for", "8bit").splitlines()[0]
    assert json.loads(visq_here(capfd, "recipes", "--for", "small", "--json", "-"))["recipe"] == "visq-w4a8-fused"
    assert run(["recipes", "--for", "everything"]) == 1
    assert "--for knows first, 8bit" in capfd.readouterr().err
