"""The file a run goes on from: whole, of the right run, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from visq.errors import VisqError
from visq.train.optimizer import WeightAverage
from visq.train.run_state import RunState, held, read_state, restore, save_state

STATE = RunState(epoch=2, step=6, seconds=1.5, config="a: 1", data="f" * 64)


def parts() -> tuple[nn.Module, torch.optim.Optimizer, WeightAverage]:
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), fused=True), WeightAverage(model, 0.9)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer, average = parts()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "c.safetensors", model, optimizer, average, STATE)
    return tmp_path / "c.safetensors"


def rewrite(path: Path, progress: dict[str, Any] | None = None, drop: str = "", **tensors: torch.Tensor) -> Path:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    values = json.loads(metadata["progress"]) | (progress or {})
    kept = {name: tensor for name, tensor in load_file(path).items() if name != drop}
    save_file({**kept, **tensors}, path, {"progress": json.dumps(values)})
    return path


def test_what_was_saved_comes_back(saved: Path) -> None:
    assert read_state(saved) == STATE
    model, optimizer, average = parts()
    restore(saved, model, optimizer, average)
    tensors = load_file(saved)
    assert torch.equal(model.weight, tensors["model/weight"]) and torch.equal(
        average.shadow["bias"], tensors["ema/bias"]
    )
    assert torch.equal(optimizer.state[model.weight]["exp_avg_sq"], tensors["exp_avg_sq/weight"])
    assert optimizer.state[model.bias]["step"] == 6


@pytest.mark.parametrize(
    "change", [{"epoch": "2"}, {"step": None}, {"step": True}, {"seconds": []}, {"config": 1}, {"more": 1}]
)
def test_wrong_values_are_no_checkpoint(saved: Path, change: dict[str, Any]) -> None:
    with pytest.raises(VisqError, match="not a training checkpoint"):
        read_state(rewrite(saved, change))


def test_another_format(saved: Path) -> None:
    with pytest.raises(VisqError, match="checkpoint of format 9, this version reads 1"):
        read_state(rewrite(saved, {"format": 9}))


@pytest.mark.parametrize("name", ["exp_avg/weight", "exp_avg_sq/bias", "ema/weight"])
def test_missing_and_wrong_tensors(saved: Path, name: str) -> None:
    tensor = load_file(saved)[name]
    with pytest.raises(VisqError, match=f"{name} is missing or has another shape"):
        restore(rewrite(saved, drop=name), *parts())
    with pytest.raises(VisqError, match=f"{name} is missing or has another shape"):
        restore(rewrite(saved, **{name: torch.cat([tensor, tensor])}), *parts())


def test_another_models_weights(saved: Path) -> None:
    with pytest.raises(VisqError, match="another model's weights"):
        restore(rewrite(saved, **{"model/weight": torch.zeros(3, 3)}), *parts())
    with pytest.raises(VisqError, match="another model's weights"):
        restore(rewrite(saved, drop="model/bias"), *parts())


def test_what_a_killed_process_had_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.safetensors.123.tmp").write_bytes(b"half")
    (tmp_path / "checkpoint.safetensors").write_bytes(b"whole")
    with held(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
