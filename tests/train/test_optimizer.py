"""Parameter groups, the learning-rate curve, and the moving average."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from visq.models import create_model
from visq.train import load_config
from visq.train.optimizer import WeightAverage, decays, learning_rate, make_optimizer


def test_what_decays(config_file: Path) -> None:
    config = load_config(config_file)
    model = create_model("vim", **config.model.geometry)
    decayed = {name.removeprefix("layers.0.") for name, p in model.named_parameters() if decays(name, p)}
    weights = {f"mixer.{part}{b}.weight" for part in ("conv1d", "x_proj", "dt_proj") for b in ("", "_b")}
    weights |= {"mixer.in_proj.weight", "mixer.out_proj.weight", "patch_embed.proj.weight", "head.weight"}
    assert decayed == weights
    groups = make_optimizer(model, config).param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_learning_rate(config_file: Path) -> None:
    config = load_config(config_file, ["lr=1.0", "min_lr=0.1", "warmup_epochs=1", "epochs=5"])
    rates = [learning_rate(config, step, 10) for step in range(50)]
    assert rates[0] == pytest.approx(1 / 11) and rates[9] == pytest.approx(10 / 11) and rates[10] == 1.0
    assert rates[30] == pytest.approx(0.55) and 0.1 < rates[49] < 0.11
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_average() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(model, decay=0.5)
    nn.init.constant_(model.weight, 2.0)
    average.update(step=0)  # decay 1/10 while it warms up
    assert average.shadow["weight"].item() == pytest.approx(1.9)
    average.update(step=1000)  # decay 1/2
    assert average.shadow["weight"].item() == pytest.approx(1.95)
    with average.applied():
        assert model.weight.item() == pytest.approx(1.95)
    assert model.weight.item() == 2.0 and average.shadow["weight"].item() == pytest.approx(1.95)
    assert not average.shadow["weight"].requires_grad and torch.is_tensor(average.shadow["bias"])
