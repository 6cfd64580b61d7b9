"""`--device` of every command that takes it."""

from __future__ import annotations

import json

import pytest
import torch

from tests.cli.conftest import Workplace, visq_here
from tests.other_device import HAS_GPU
from visq.cli.main import run
from visq.cli.output import Output

COMMANDS = {
    "quantize": lambda w: [*w.model, "--recipe", "minmax-w8a8", "--calib", w.images, "--out", w.images / "out"],
    "eval": lambda w: ["vim", "--checkpoint", w.checkpoint, "--data", w.images],
    "compare": lambda w: [*w.model, "--recipes", "minmax-w8a8", "--data", w.images],
    "diagnose": lambda w: [w.artifact, "--data", w.images],
    "reproduce": lambda w: ["qmamba", "--checkpoint", w.checkpoint, "--calib", w.images, "--data", w.images],
    "train": lambda w: ["configs/train/vim_nano_fmnist.yaml", "--out", w.images / "out"],
    "backends": lambda w: [],
    "bench": lambda w: [w.artifact],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_there(workplace: Workplace, capfd: pytest.CaptureFixture[str], command: str) -> None:
    for device, message in (
        ("cuda:99", "device 'cuda:99' cannot be used: "),
        ("gpu", "'gpu' cannot be used: there are"),
    ):
        assert run([command, *map(str, COMMANDS[command](workplace)), "--device", device]) == 1
        err = capfd.readouterr().err
        assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (workplace.images / "out").exists()


def test_auto_takes_what_there_is(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    shown = visq_here(capfd, "eval", *map(str, COMMANDS["eval"](workplace)), "--device", "auto", "--json", "-")
    row = json.loads(shown)
    assert row["device"].startswith("cuda:0, " if HAS_GPU else "cpu")
    assert ("triton" in row["kernels"]["selective_scan"]) == HAS_GPU


def test_the_kernels_of_a_gpu(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if not HAS_GPU:
        shown = visq_here(capfd, "backends", "--device", "cuda")
        assert "this PyTorch is built without CUDA" in shown and "naive" in shown
    monkeypatch.setattr("visq.device.described", lambda device: "cuda:0, Some GPU")
    Output().kernels(torch.device("cuda", 0))
    assert capfd.readouterr().out.startswith("kernels on cuda:0, Some GPU: ")
