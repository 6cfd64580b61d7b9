"""What `visq quantize` and `visq inspect` say about the self-check, and the exit code scripts go by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Workplace, visq_here
from tests.cli.test_bad_input import refused
from visq.cli.main import run
from visq.cli.output import Output

CHEAP = "minmax-w2a2"


def command(place: Workplace, out: Path, recipe: str = "minmax-w8a8", samples: int = 16) -> list[str]:
    options = ["--recipe", recipe, "--calib", str(place.images), "--samples", str(samples), "--out", str(out)]
    return ["quantize", *place.model, *options]


def test_printed_stored_and_inspected(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = visq_here(capfd, *command(workplace, tmp_path / "a"), "--json", tmp_path / "a.json")
    assert "held-out images: 8 of 64; " in done and "has no more beside the 16 calibration images" in done
    block = done[done.index("self-check: ") :].splitlines()
    assert "of 16 decisions are FP32's" in block[1] and "of 8 decisions are FP32's" in block[2]
    assert block[3].startswith("  worst sites: ") and block[3].count("bits") == 3
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["check"] == json.loads((tmp_path / "a/config.json").read_text())["check"]
    assert document["check_seconds"] > 0 and "seconds" not in document["check"]
    inspected = visq_here(capfd, "inspect", tmp_path / "a")
    assert block[1:4] == inspected[inspected.index("self-check: ") :].splitlines()[1:4]


def test_no_images_are_left(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = visq_here(capfd, *command(workplace, tmp_path / "a", samples=24))
    assert "held-out images: 0 of 64" in done and "held out: no images" in done


def test_no_check(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = visq_here(capfd, *command(workplace, tmp_path / "a"), "--no-check")
    assert "self-check" not in done and "self-check: none was made" in visq_here(capfd, "inspect", tmp_path / "a")
    assert "leave out --no-check" in refused(
        capfd, *command(workplace, tmp_path / "b"), "--no-check", "--fail-below", "good"
    )
    assert "takes good or doubtful" in refused(capfd, *command(workplace, tmp_path / "b"), "--fail-below", "bad")
    assert not (tmp_path / "b").exists()


def test_fail_below_keeps_the_artifact(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a"
    assert run([*command(workplace, out, CHEAP), "--fail-below", "good", "--json", str(tmp_path / "a.json")]) == 3
    captured = capfd.readouterr()
    said = captured.err.splitlines()
    assert len(said) == 1 and "which is below good; the artifact is kept in" in said[0], captured
    assert json.loads((tmp_path / "a.json").read_text())["check"]["verdict"] != "good"
    assert "self-check: " in visq_here(capfd, "inspect", out)


def test_numbers_that_are_not_finite_are_null_with_a_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Output(str(tmp_path / "a.json")).emit({"rows": [{"top1": float("nan"), "n": 3}], "gap": (1.0, float("-inf"))})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "rows": [{"top1": None, "n": 3}],
        "gap": [1.0, None],
        "not_finite": {"rows.0.top1": "nan", "gap.1": "-inf"},
    }
    assert "2 numbers are NaN or infinite and null in the JSON, such as rows.0.top1" in capfd.readouterr().err
