"""Tests each command's output and its JSON contract; the same command gives the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import visq
from tests.cli.conftest import GEOMETRY, Workplace, environment, visq_command, visq_here
from visq.cli.main import run
from visq.models.registry import PRETRAINED

EVAL_KEYS = {
    "model", "checkpoint_sha256", "recipe", "scope", "weight_bits", "activation_bits", "state_bits", "backend",
    "kernels", "n", "top1", "top5", "bytes", "seconds", "images_per_second", "threads", "seed", "versions",
}  # fmt: skip
COMPARE_KEYS = EVAL_KEYS | {
    "fp32_top1", "drop", "calibration_seconds", "peak_rss_bytes", "sites_quantized", "sites_targeted",
}  # fmt: skip
CONFIG_KEYS = {
    "schema_version",
    "architecture",
    "preprocess",
    "classes",
    "recipe",
    "provenance",
    "coverage",
    "sites",
    "tensors",
}


def test_quantize_eval_inspect(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantize = ("quantize", *workplace.model, "--recipe", "kscaled-w4a4", "--calib", workplace.images, "--samples", 8)
    first = visq_command(*quantize, "--out", tmp_path / "a", "--json", tmp_path / "a.json")
    assert first.returncode == 0 and first.stderr == "", first.stderr
    assert "kernels: " in first.stdout and "in_proj.weight" in first.stdout and "peak memory" in first.stdout
    document = json.loads((tmp_path / "a.json").read_text())
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert set(document) >= CONFIG_KEYS | {"calibration_seconds", "peak_rss_bytes", "bytes"}
    assert {key: document[key] for key in CONFIG_KEYS - {"coverage"}} == {
        key: config[key] for key in CONFIG_KEYS - {"coverage"}
    }
    assert all(row["quantized"] == row["targeted"] for row in document["coverage"])
    assert sum(row["targeted"] for row in document["coverage"]) == len(config["sites"])

    second = visq_here(capfd, *quantize, "--out", tmp_path / "b", "--json", "-", "--threads", 1)
    assert json.loads(second)["sites"] == document["sites"]
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.json", "b"]

    measured = visq_here(capfd, "eval", tmp_path / "a", "--data", workplace.images, "--backend", "sim", "--json", "-")
    row = json.loads(measured)
    assert set(row) >= EVAL_KEYS
    assert (row["recipe"], row["scope"], row["backend"], row["n"], row["seed"]) == (
        "kscaled-w4a4",
        "full",
        "sim",
        24,
        0,
    )
    assert row["weight_bits"] == row["activation_bits"] == row["state_bits"] == 4
    assert row["bytes"] == document["bytes"] and row["checkpoint_sha256"] == config["provenance"]["checkpoint_sha256"]

    inspected = visq_here(capfd, "inspect", tmp_path / "a", "--json", tmp_path / "i.json")
    assert "bytes for each of" in inspected
    assert set(json.loads((tmp_path / "i.json").read_text())) >= CONFIG_KEYS


def test_eval_of_an_fp32_model(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ("eval", "vim", "--checkpoint", workplace.checkpoint, "--data", workplace.images)
    done = visq_here(capfd, *command, "--limit", 10, "--json", tmp_path / "row.json", "--threads", 1)
    row = json.loads((tmp_path / "row.json").read_text())
    assert set(row) >= EVAL_KEYS
    assert (row["recipe"], row["scope"], row["backend"], row["n"], row["threads"]) == ("fp32", "none", "fp32", 10, 1)
    assert row["weight_bits"] == 32 and row["top5"] == 100.0 and f"{row['top1']:.2f}" in done


def test_compare_keeps_finished_rows(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = "minmax-w8a8-linear,minmax-w2a2-linear"
    command = (
        "compare",
        *workplace.model,
        "--recipes",
        names,
        "--data",
        workplace.images,
        "--samples",
        6,
        "--seeds",
        "0,1",
    )
    first = visq_here(capfd, *command, "--json", tmp_path / "c.json", "--markdown", tmp_path / "c.md")
    assert "±" in first
    document = json.loads((tmp_path / "c.json").read_text())
    assert set(document) == {"rows", "machine", "versions"} and len(document["rows"]) == 5
    assert all(set(row) >= COMPARE_KEYS for row in document["rows"])
    assert (tmp_path / "c.md").read_text().startswith("| model |")
    visq_here(capfd, *command, "--json", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["rows"] == document["rows"]


def test_listings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    models = visq_here(capfd, "models", "--json", "-")
    assert {"vim_tiny", "vim_nano_fmnist"} <= {card["name"] for card in json.loads(models)}
    lines = visq_here(capfd, "models", "vim_nano_fmnist").splitlines()
    assert next(line.split() for line in lines if "in_proj.weight" in line) == [
        *("layers.*.mixer.in_proj.weight", "weight", "6")
    ]
    sites = json.loads(visq_here(capfd, "models", "vim_nano_fmnist", "--json", "-"))
    assert sites["layers.5.mixer.scan_b.h"] == "inner"
    recipes = visq_here(capfd, "recipes")
    assert "kscaled-w8a8" in recipes and "fp32" in recipes
    assert "4 bits symmetric" in visq_here(capfd, "recipes", "kscaled-w4a8")
    assert "selective_scan" in visq_here(capfd, "backends", "--json", tmp_path / "b.json")
    assert "quantized_scan" in json.loads((tmp_path / "b.json").read_text())["ops"]
    assert visq_here(capfd, "--version").startswith("visq ")
    overview = visq_here(capfd)
    assert "quantize" in overview and "╭" not in overview


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from visq.cli.main import run; run(['eval', '--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_train_then_eval(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = {
        "model": {"name": "vim", "geometry": GEOMETRY},
        "data": {
            "train": str(workplace.images),
            "eval": str(workplace.images),
            "preprocess": {"image_size": 16, "resize": 16, "mean": [0.5], "std": [0.5], "channels": 1},
        },
        "epochs": 3,
        "batch_size": 8,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    train = ("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--set", "epochs=2")
    assert run([*map(str, train), "--json", str(tmp_path / "t.json")]) == 0
    capfd.readouterr()
    result = json.loads((tmp_path / "t.json").read_text())
    data = ("--data", workplace.images, "--json", "-")
    row = json.loads(visq_here(capfd, "eval", "vim", "--checkpoint", result["model"], *data))
    assert row["n"] == 24 and row["top1"] == pytest.approx(result["top1"])


@pytest.mark.slow
def test_processes_of_torchrun_share_the_work(workplace: Workplace, tmp_path: Path) -> None:
    quantize = ("quantize", *workplace.model, "--recipe", "kscaled-w4a4", "--calib", workplace.images, "--samples", 24)
    quantize = (*quantize, "--batch", 5, "--threads", 1)
    alone = visq_command(*quantize, "--out", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "visq.cli"]
    command = [*launcher, *map(str, quantize), "--out", str(tmp_path / "shared"), "--json", "-"]
    shared = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert shared.returncode == 0, shared.stderr
    json.loads(shared.stdout)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "shared"]


@pytest.mark.skipif(not (PRETRAINED / "vim_nano_fmnist.safetensors").exists(), reason="the weights are not there yet")
@pytest.mark.slow
def test_full_demo(tmp_path: Path) -> None:
    command = ("demo", "--full", "--out", tmp_path / "demo", "--limit", 50, "--samples", 8)
    command = (*command, "--json", tmp_path / "d.json")
    done = visq_command(*command)
    assert done.returncode == 0 and done.stdout.count("same top-1") >= 8, done.stderr
    rows = json.loads((tmp_path / "d.json").read_text())["rows"]
    assert len(rows) == 9 and rows[0]["recipe"] == "fp32" and rows[0]["n"] == 50
    assert all(row["sites_quantized"] == row["sites_targeted"] > 0 for row in rows[1:])
    assert all(row["loaded_top1"] == row["top1"] and row["loaded_ms"] > 0 for row in rows[1:])
    assert len(list((tmp_path / "demo").iterdir())) == 8


@pytest.mark.skipif(not (PRETRAINED / "vim_nano_fmnist.safetensors").exists(), reason="the weights are not there yet")
def test_demo_compares_logits_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = ("demo", "--limit", 20, "--samples", 2, "--json", "rows.json")
    done = visq_command(*command, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("same bits on 20") == 8, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    engine = "sim" if rows[1]["loaded_kernel"] == "its simulation" else "int"
    assert [row["backend"] for row in rows] == ["fp32", *8 * [engine]]
    assert all(row["n"] == row["simulated"] == 20 and row["loaded_top1"] == row["top1"] for row in rows[1:])
    assert {row["verdict"] for row in rows[1:]} <= {"good", "doubtful", "broken"}
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_a_demo_that_disagrees_fails(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from visq.cli import demo

    monkeypatch.setattr(demo, "same_logits", lambda *_: (False, 4, 1.0))
    assert run(["demo", "--limit", "4", "--samples", "2", "--threads", "1"]) == 1
    assert "does not compute what was simulated" in capfd.readouterr().err


def test_python_m_visq() -> None:
    command = [sys.executable, "-m", "visq", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, f"visq {visq.__version__}\n", "")
