"""Whole runs of a second: learning, resuming to the same bytes, being killed, and clear refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from visq.errors import VisqError
from visq.models import create_model, load_model
from visq.train import load_config, train
from visq.train.report import EpochLog
from visq.train.run_state import held


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def curve(out: Path) -> list[tuple[Any, ...]]:
    return [(e["epoch"], e["train_loss"], e["lr"], e.get("top1_raw"), e.get("top1_ema")) for e in log(out)]


def stop_after(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Makes the log fail as if Ctrl-C came just after `epoch` was logged, before its checkpoint."""
    append = EpochLog.append

    def interrupt(self: EpochLog, entry: dict[str, Any]) -> None:
        append(self, entry)
        if entry["epoch"] == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(EpochLog, "append", interrupt)


def test_learns_and_leaves_a_model(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, state = tmp_path / "run", torch.random.get_rng_state()
    config = load_config(config_file, ["epochs=8", "augment={}", "eval_every=3"])
    result = train(config, out=out)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's generator is left alone
    assert result.score > 90 and result.n == 30 and result.score_ema is not None and result.seconds > 0
    entries = log(out)
    assert [e["epoch"] for e in entries if "top1_raw" in e] == [3, 6, 8]
    assert entries[-1]["train_loss"] < entries[0]["train_loss"] and entries[-1]["images_per_second"] > 0
    assert load_config(out / "config.yaml") == config
    assert "epoch 8/8" in capsys.readouterr().err

    weights = load_file(result.model)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert set(weights) == set(create_model("vim", **config.model.geometry).state_dict())
    model = load_model("vim", result.model)
    assert model.card.classes == config.data.classes and model.card.preprocess == config.preprocess
    again = train(config, out=out, resume=True, progress=False)  # a finished run only reports
    assert (again.score, again.score_raw, again.score_ema) == (result.score, result.score_raw, result.score_ema)


def test_interrupted_run_ends_in_the_same_bytes(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole, parts = load_config(config_file), tmp_path / "whole", tmp_path / "parts"
    train(config, out=whole, progress=False)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)  # logged, but the newest checkpoint is of epoch 2
        with pytest.raises(KeyboardInterrupt):
            train(config, out=parts, progress=False)
    assert len(log(parts)) == 3
    with open(parts / "log.jsonl", "a") as file:
        file.write('{"epoch": 4, "tra')  # a line that a kill cut off
    train(config, out=parts, resume=True, progress=False)
    assert curve(parts) == curve(whole)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    first, second = load_file(whole / "checkpoint.safetensors"), load_file(parts / "checkpoint.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_killed_run_resumes(config_file: Path, tmp_path: Path) -> None:
    config, out = load_config(config_file, ["epochs=3"]), tmp_path / "killed"
    code = (
        "import sys, torch; from pathlib import Path; from visq.train import load_config, train; "
        "torch.set_num_threads(1); "
        "train(load_config(Path(sys.argv[1]), ['epochs=3']), out=Path(sys.argv[2]), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(config_file), str(out)])
    deadline = time.monotonic() + 60
    while not (out / "checkpoint.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    train(config, out=out, resume=True, progress=False)
    train(config, out=tmp_path / "whole", progress=False)
    assert [entry[0] for entry in curve(out)] == [1, 2, 3]
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_refuses_to_mix_runs(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, ["epochs=2"])
    train(config, out=tmp_path / "run", progress=False)
    with pytest.raises(VisqError, match="holds a run already"):
        train(config, out=tmp_path / "run", progress=False)
    other = load_config(config_file, ["epochs=2", "lr=0.25"])
    with pytest.raises(VisqError, match=r"another configuration \(lr: 0\.005 there, 0\.25 here\)"):
        train(other, out=tmp_path / "run", resume=True, progress=False)
    images = tmp_path / "idx/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1] + b"\x00")
    with pytest.raises(VisqError, match="other images"):
        train(config, out=tmp_path / "run", resume=True, progress=False)
    (tmp_path / "run/checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(VisqError, match="not a training checkpoint"):
        train(config, out=tmp_path / "run", resume=True, progress=False)


def test_one_run_at_a_time_in_a_folder(config_file: Path, tmp_path: Path) -> None:
    config, out = load_config(config_file, ["epochs=2"]), tmp_path / "run"
    out.mkdir()
    with held(out), pytest.raises(VisqError, match=r"another process trains in .*run; wait for it"):
        train(config, out=out, progress=False)
    assert list(out.iterdir()) == []
    train(config, out=out, progress=False)
    assert "model.safetensors" in os.listdir(out)


def test_a_folder_that_cannot_be_written(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(config_file, ["epochs=2"])
    with pytest.raises(VisqError, match=r"the run cannot be kept in .*tiny\.yaml: File exists"):
        train(config, out=config_file, progress=False)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("visq.train.run_state.save_file", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(VisqError, match=r"the run cannot be kept in .*run: No space left on device"):
        train(config, out=tmp_path / "run", progress=False)


def test_a_gpu_whose_memory_is_full(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(config_file, ["batch_size=8"])
    full = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr("visq.train.loop._Run._step", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(VisqError, match="cpu has too little memory for batches of 8; try --set batch_size=4"):
        train(config, out=tmp_path / "run", progress=False)


def test_loss_that_is_not_finite(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, ["lr=1e30", "warmup_epochs=0", "grad_clip=0"])
    with pytest.raises(VisqError, match=r"is (nan|inf) at epoch 1, step \d+, learning rate \d\.\d+e\+\d+: lower lr"):
        train(config, out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    "override,message",
    [
        ("batch_size=97", "batch_size 97 is more than 96 images"),
        ("model.geometry.channels=3", "model.geometry.channels is 3 but the data has 1"),
        ("model.geometry.num_classes=5", "model.geometry.num_classes is 5 but the data has 3"),
        ("data.classes=[a, b]", "label 2 but only 2 class names"),
        ("data.holdout=96", "leaves nothing of 96 training images"),
        ("data.eval=nowhere", "no such folder or tar"),
        ("device=nonsense", "device 'nonsense' cannot be used"),
    ],
)
def test_what_does_not_fit(config_file: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(VisqError, match=message):
        train(load_config(config_file, [override]), out=tmp_path / "run", progress=False)


def test_holdout_raw_weights_and_bf16(config_file: Path, tmp_path: Path) -> None:
    overrides = ["epochs=1", "warmup_epochs=0", "data.holdout=20", "ema_decay=0", "save=raw", "precision=bf16"]
    result = train(load_config(config_file, overrides), out=tmp_path / "run", progress=False)
    assert result.n == 20 and result.score_ema is None


def test_fine_tuning_starts_from_a_checkpoint(config_file: Path, tmp_path: Path) -> None:
    first = train(load_config(config_file, ["epochs=8", "augment={}"]), out=tmp_path / "first", progress=False)
    overrides = [f"model.checkpoint={first.model}", "epochs=1", "warmup_epochs=0", "lr=1e-9", "min_lr=0"]
    second = train(load_config(config_file, overrides), out=tmp_path / "second", progress=False)
    before, after = load_file(first.model), load_file(second.model)
    assert all(torch.allclose(before[name].float(), after[name].float(), atol=1e-3) for name in before)
    with pytest.raises(VisqError, match="does not exist"):
        overrides = ["model.checkpoint=nowhere.safetensors"]
        train(load_config(config_file, overrides), out=tmp_path / "third", progress=False)


LARGER = ["model.geometry.image_size=12", "data.preprocess.image_size=12", "data.preprocess.resize=12"]
SHORT = ["epochs=1", "warmup_epochs=0", "min_lr=0"]


def test_fine_tuning_at_another_resolution(config_file: Path, tmp_path: Path) -> None:
    first = train(load_config(config_file, [*SHORT]), out=tmp_path / "first")
    overrides = [*SHORT, *LARGER, f"model.checkpoint={first.model}", "lr=1e-9"]
    with pytest.raises(VisqError, match="it was trained for images of 8 pixels, not 12"):
        train(load_config(config_file, overrides), out=tmp_path / "refused")
    config = load_config(config_file, [*overrides, "model.interpolate_positions=true"])
    second = load_file(train(config, out=tmp_path / "second").model)
    assert second["pos_embed"].shape == (1, 10, 16) and load_file(first.model)["pos_embed"].shape == (1, 5, 16)
    assert torch.equal(second["head.weight"], load_file(first.model)["head.weight"])


def test_vmamba_trains_on_crops_of_larger_images(config_file: Path, tmp_path: Path) -> None:
    geometry = "{image_size: 8, channels: 1, embed_dim: 8, depths: [1, 1], mlp_ratio: 1, num_classes: 3}"
    overrides = ["epochs=8", "model.name=vmamba", f"model.geometry={geometry}", "save=raw", "ema_decay=0"]
    crops = ["data.train_size=10", "augment={resized_crop: [0.8, 1.0]}"]
    result = train(load_config(config_file, [*overrides, *crops]), out=tmp_path / "run")
    assert result.score > 90
    model = load_model(None, result.model)
    assert model.card.name == "vmamba" and model.config.depths == (1, 1) and model.config.image_size == 8


def test_the_mean_with_earlier_cycles(config_file: Path, tmp_path: Path) -> None:
    def run(name: str, *overrides: str) -> Path:
        return train(load_config(config_file, list(overrides)), out=tmp_path / name, progress=False).model

    first, alone = run("first", "seed=1"), run("alone")
    weights = [load_file(path) for path in (first, alone, run("both", f"average_with=[{first}]"))]
    for name, mean in weights[2].items():
        expected = (weights[0][name].float() + weights[1][name].float()) / 2
        assert torch.allclose(mean.float(), expected, rtol=2e-3, atol=1e-3), name
    with pytest.raises(VisqError, match="another network"):
        run("other", "model.geometry.depth=2", "epochs=1", "warmup_epochs=0", f"average_with=[{first}]")
