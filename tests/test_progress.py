"""Plain lines, silence, and the callback."""

from __future__ import annotations

import time

import pytest

from visq import progress
from visq.progress import Progress


def run(shown: Progress) -> None:
    with shown.task("reading", total=3) as task:
        task.advance(1, note="first")
        task.reach(3)


def test_short_tasks_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    run(Progress("plain"))
    run(Progress("bar"))
    captured = capfd.readouterr()
    assert captured.out == "" and "Error" not in captured.err


def test_long_tasks_say_how_far_they_are(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    run(Progress("plain"))
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == ["reading: 1/3 (first)", "reading: 3/3"] and lines[2].startswith("reading: 3 in ")
    run(Progress("silent"))
    assert capfd.readouterr().out == ""


def test_the_callback_hears_of_every_step() -> None:
    told: list[tuple[str, int, int | None]] = []
    shown = Progress("silent", callback=lambda *step: told.append(step))
    run(shown)
    with shown.task("writing") as task:
        task.advance()
    assert told == [("reading", 0, 3), ("reading", 1, 3), ("reading", 3, 3), ("writing", 0, None), ("writing", 1, None)]


def test_an_error_is_not_a_finished_task(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with pytest.raises(ValueError), Progress("plain").task("reading"):
        time.sleep(0.001)
        raise ValueError
    assert capfd.readouterr().out == ""
