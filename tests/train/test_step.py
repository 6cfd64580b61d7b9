"""One optimizer step: as the trainer does it, with everything in fixed memory, and captured by a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from visq.models import create_model
from visq.train import load_config, step
from visq.train.optimizer import WeightAverage, learning_rate, make_optimizer
from visq.train.step import WARM_UP, Measured, Step

STEPS = 8


class Trained:
    """A network after STEPS steps."""

    def __init__(self, config_file: Path, capture: bool, *overrides: str, step_class: Any = Step) -> None:
        self.config = load_config(config_file, ["drop_path=0.2", *overrides])
        torch.manual_seed(0)
        self.model = create_model("vim", **self.config.model.geometry, drop_path=0.2).train()
        optimizer = make_optimizer(self.model, self.config)
        self.ema = WeightAverage(self.model, 0.9)
        device = torch.device("cpu")
        loss = torch.nn.functional.cross_entropy
        self.step = step_class(self.model, loss, self.model, optimizer, self.ema, self.config, device, capture=capture)
        generator = torch.Generator().manual_seed(1)
        self.measured: list[list[float]] = []
        for number in range(STEPS):
            images = torch.randn(4, 1, 8, 8, generator=generator)
            targets = torch.softmax(torch.randn(4, 3, generator=generator), 1)
            rate = learning_rate(self.config, number, 6)
            self.measured.append([x.item() for x in self.step(images, targets, rate, number)])

    def assert_close(self, other: Trained) -> None:
        torch.testing.assert_close(self.model.state_dict(), other.model.state_dict(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(self.ema.shadow, other.ema.shadow, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(torch.tensor(self.measured), torch.tensor(other.measured), rtol=1e-4, atol=1e-5)


def in_place_of_cuda(run: Callable[[], Measured], stream: Any) -> tuple[Callable[[], None], Measured]:
    """Stands in for a capture: nothing runs meanwhile, and a replay overwrites the results."""
    found = (torch.zeros(()), torch.zeros(()))

    def replay() -> None:
        for old, new in zip(found, run(), strict=True):
            old.copy_(new)

    return replay, found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_step_trains_as_the_plain_one(
    precision: str, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trained(config_file, False, f"precision={precision}")
    captures: list[int] = []

    def counted(run: Callable[[], Measured], stream: Any) -> Any:
        captures.append(len(plain.measured))
        return in_place_of_cuda(run, stream)

    monkeypatch.setattr(step, "captured", counted)
    replayed = Trained(config_file, True, f"precision={precision}")
    assert len(captures) == 1 and replayed.step.why_not is None
    replayed.assert_close(plain)
    moved = [not torch.equal(a, b) for a, b in zip(plain.ema.shadow.values(), plain.model.parameters(), strict=True)]
    assert any(moved)


def test_where_nothing_can_be_captured(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def refuses(run: Callable[[], Measured], stream: Any) -> Any:
        calls.append(1)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(step, "captured", refuses)
    found = Trained(config_file, True)
    assert calls == [1]  # it is not tried again
    assert found.step.why_not == "operation not permitted when stream is capturing"
    found.assert_close(Trained(config_file, False))


def test_a_full_memory_is_not_a_reason_to_go_on(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(run: Callable[[], Measured], stream: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(step, "captured", full)
    with pytest.raises(torch.OutOfMemoryError):
        Trained(config_file, True)
    assert STEPS > WARM_UP + 2


def test_inputs_are_copied_to_where_a_graph_reads_them(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay must see new images, targets, rates and shares in the memory of the capture."""
    seen: list[tuple[int, ...]] = []

    class Watched(Step):
        def _run(self, images: Tensor, targets: Tensor, share: Any) -> Measured:
            rate = self.optimizer.param_groups[0]["lr"]
            seen.append(tuple(x.data_ptr() for x in (images, targets, share, rate)))
            return super()._run(images, targets, share)

    monkeypatch.setattr(step, "captured", in_place_of_cuda)
    Trained(config_file, True, step_class=Watched)
    assert len(seen) == STEPS and len(set(seen)) == 1


def test_the_key_turns_it_off(config_file: Path) -> None:
    assert load_config(config_file).cuda_graph
    assert Trained(config_file, None).step.why_not is None  # type: ignore[arg-type]
