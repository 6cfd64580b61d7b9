"""The script behind `make gpu-check`: without a GPU it is a dry run of every part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_check.py"


#: What a machine with the packages of `gpu_check.py` lacks, hidden from a process that starts with this file.
HIDDEN = """
import sys
from importlib.machinery import PathFinder


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = {"PIL", "pytest", "hypothesis", "onnx", "onnxruntime", "scipy", "matplotlib"}
        return None if name.partition(".")[0] in missing else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes 8 minutes on a GPU; run make gpu-check")
def test_dry_run(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, str(SCRIPT), "--json", str(result), "--artifact", str(tmp_path / "a")]
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert found["where"]["dry_run"] and found["errors"] == []
    assert found["small_programs"]["all_equal"] and len(found["small_programs"]["programs"]) == 14
    for network in ("whole_network", "attention_network"):
        assert found[network]["oracle"] == {"equal": True, "wrong_tensors": []}
    rows = {row["contender"]: row for row in found["speed"]["rows"]}
    assert rows.keys() == {"visq engine", "eager fp16"} and rows["eager fp16"]["sqnr_db_to_fp32"] > 20
    assert "DRY RUN, times mean nothing." in done.stdout
