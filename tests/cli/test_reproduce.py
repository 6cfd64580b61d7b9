"""`visq reproduce` from end to end, on a tiny network and a handful of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Workplace, visq_here
from visq.cli.main import run
from visq.reproduce import get_table, table_names


def command(workplace: Workplace, table: str, out: Path) -> tuple[object, ...]:
    images = ("--calib", workplace.images, "--data", workplace.images, "--samples", 6)
    return ("reproduce", table, "--checkpoint", workplace.checkpoint, *images, "--out", out)


def reproduced(workplace: Workplace, table: str, out: Path, capfd: pytest.CaptureFixture[str]) -> str:
    shown = visq_here(capfd, *command(workplace, table, out))
    document = json.loads((out / f"{table}.json").read_text())
    assert [row["label"] for row in document["rows"]] == [row.label for row in get_table(table).rows]
    assert all(0 <= row["top1"] <= 100 and row["n"] == 24 for row in document["rows"])
    assert all(row["sites_quantized"] == row["sites_targeted"] > 0 for row in document["rows"][1:])
    text = (out / f"{table}.md").read_text()
    assert "none of the table's" in text and "(the paper: " in text and "none of the table's" in shown
    assert all(f"| {row.label} |" in text for row in get_table(table).rows)
    return text


def test_a_table_and_an_interrupted_run(
    workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table, out = "kscaled-table1", tmp_path / "results"
    first = reproduced(workplace, table, out, capfd)
    assert "| Both | 8/8/32 | 75.5 |" in first
    rows = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    assert len(rows) == 5
    (out / "rows.jsonl").write_text("".join(rows[:3]) + rows[3][:40] + "\n")  # a kill cut the fourth row off
    assert reproduced(workplace, table, out, capfd) == first
    again = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    assert again[:3] == rows[:3] and len(again) == 6


@pytest.mark.slow
@pytest.mark.parametrize("table", [name for name in table_names() if name != "kscaled-table1"])
def test_the_other_tables(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str], table: str) -> None:
    reproduced(workplace, table, tmp_path / "results", capfd)


def test_wrong_input(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = [str(part) for part in command(workplace, "kscaled-table1", tmp_path / "results")]
    for change, message in (
        ({"kscaled-table1": "kscaled-table4"}, "unknown table 'kscaled-table4'; there are kscaled-table1"),
        ({"6": "600"}, "600"),
        ({str(tmp_path / "results"): str(workplace.checkpoint)}, "--out"),
    ):
        assert run([change.get(part, part) for part in good]) == 1
        err = capfd.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert run([*good, "--device", "cuda:7"]) == 1
    assert "device 'cuda:7' cannot be used" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
