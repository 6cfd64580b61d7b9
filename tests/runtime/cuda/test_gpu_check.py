"""The script behind `make gpu-check`: without a GPU it is a dry run of every part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_check.py"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes 8 minutes on a GPU; run make gpu-check")
def test_dry_run(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, str(SCRIPT), "--json", str(result), "--artifact", str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert found["where"]["dry_run"] and found["errors"] == []
    assert found["small_programs"]["all_equal"] and len(found["small_programs"]["programs"]) == 14
    for network in ("whole_network", "attention_network"):
        assert found[network]["oracle"] == {"equal": True, "wrong_tensors": []}
    rows = {row["contender"]: row for row in found["speed"]["rows"]}
    assert rows.keys() == {"visq engine", "eager fp16"} and rows["eager fp16"]["sqnr_db_to_fp32"] > 20
    assert "DRY RUN, times mean nothing." in done.stdout
