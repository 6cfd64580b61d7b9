"""One place resolves a device; each way it can fail is one error that says what to do."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch

from visq import device
from visq.device import CPU, described, device_of, on_its_device, reproducible, resolve_device
from visq.errors import VisqError

from .other_device import DEVICE, HAS_GPU, other_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch for CUDA, and two GPUs of compute capability 9.0."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "Some GPU")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.mark.parametrize("given", [None, "cpu", CPU])
def test_the_cpu_needs_nothing(given: str | torch.device | None) -> None:
    assert resolve_device(given) == CPU
    assert described(CPU) == "cpu"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_by_number_or_by_the_rank_that_torchrun_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cuda") == resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == resolve_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert described(torch.device("cuda", 1)) == "cuda:1, Some GPU"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "mps", "", "CUDA"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(VisqError, match="cannot be used: there are cpu, cuda, cuda:0"):
        resolve_device(name)


def driver_warns() -> bool:
    """Does what PyTorch does with a driver older than its CUDA."""
    warnings.warn("CUDA initialization: found version 11040\nPlease update your GPU driver", stacklevel=1)
    return False


def driver_fails(index: int | None = None) -> tuple[int, int]:
    raise RuntimeError("driver/library mismatch\nsecond line")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("what", "value", "name", "message"),
    [
        (None, None, "cuda:2", "there is no GPU 2, the last one is cuda:1"),
        ((torch.version, "cuda"), None, "cuda", "this PyTorch is built without CUDA"),
        ((torch.cuda, "is_available"), lambda: False, "cuda", "finds no GPU: there is none, or its driver is too old"),
        ((torch.cuda, "is_available"), driver_warns, "cuda", r"too old \(CUDA initialization: found version 11040\)"),
        ((torch.cuda, "get_device_capability"), driver_fails, "cuda", "cannot use GPU 0: driver/library mismatch"),
        ((torch.cuda, "get_device_capability"), lambda index=None: (7, 5), "cuda:1", "8.0, and this GPU has 7.5"),
        (
            (importlib.util, "find_spec"),
            lambda name: None,
            "cuda",
            r"Triton is not installed: pip install 'visq\[gpu\]'",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, what: tuple[object, str] | None, value: object, name: str, message: str
) -> None:
    if what is not None:
        monkeypatch.setattr(*what, value)
        assert resolve_device("auto") == CPU
    with pytest.raises(VisqError, match=f"device '{name}' cannot be used: .*{message}.*; take cpu, or auto"):
        resolve_device(name)


def test_a_network_runs_where_it_is() -> None:
    network = torch.nn.Linear(3, 2)
    images = torch.randn(4, 3)
    expected = network(images)
    assert device_of(network) == CPU and device_of(object()) == CPU
    with other_device() as there, torch.no_grad():
        network.to(there)
        assert device_of(network) == there
        found = on_its_device(network)(images)
        assert found.device == CPU
        torch.testing.assert_close(found, expected.detach())


@pytest.mark.skipif(HAS_GPU, reason="the stand-in is for machines without a GPU")
def test_the_stand_in_refuses_to_mix_devices() -> None:
    with other_device() as there:
        x = torch.ones(3, device=there)
        assert (x * torch.tensor(2.0) + 1).device == DEVICE  # a single number may come from the CPU
        for mix in (
            lambda: x + torch.ones(3),
            lambda: torch.cat([x, torch.ones(1)]),
            lambda: x.index_add(0, torch.zeros(1).long(), x[:1]),
        ):
            with pytest.raises(RuntimeError, match="on cpu"):
                mix()
        with pytest.raises(RuntimeError):
            x.numpy()


def test_memory_that_is_full_is_an_error_that_names_a_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "described", str)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    before = torch.backends.cudnn.allow_tf32
    for batch, advice in ((32, "for batches of 32; try --batch 16"), (None, "a smaller --batch needs less")):
        with (
            pytest.raises(VisqError, match=f"cuda:0 has too little memory.*{advice}"),
            reproducible(torch.device("cuda:0"), batch),
        ):
            assert not torch.backends.cudnn.allow_tf32 and torch.are_deterministic_algorithms_enabled()
            raise torch.OutOfMemoryError("CUDA out of memory")
    assert torch.backends.cudnn.allow_tf32 == before and not torch.are_deterministic_algorithms_enabled()
    with reproducible(CPU):
        assert not torch.are_deterministic_algorithms_enabled()
