"""A deployed network away from the CPU has the bits it has there, which are the engine's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.analysis.conftest import image_folder, images, model  # noqa: F401 - fixtures
from tests.other_device import DEVICE, HAS_GPU, other_device
from visq.data import Dataset
from visq.device import CPU
from visq.models import VisionMamba
from visq.ops import backends
from visq.pipeline import quantize
from visq.recipes import get_recipe
from visq.simulation import move


@pytest.fixture
def _kernels_there() -> Iterator[None]:
    """Lets the stand-in run what CUDA would run."""
    if HAS_GPU:
        yield
        return
    ops = ("exact", "fixed_scan")
    for op in ops:
        backends.register(op, "there", devices=(DEVICE.type,))(backends.implementation(op, "torch"))
    yield
    for op in ops:
        backends.unregister(op, "there")


@pytest.mark.usefixtures("_kernels_there")
@pytest.mark.parametrize(
    "recipe",
    [
        "minmax-w8a8",
        "visq-w8a8-fused",
        pytest.param("minmax-channel-w4a4-linear", marks=pytest.mark.slow),
        pytest.param("mambaquant-w4a4", marks=pytest.mark.slow),
    ],
)
def test_a_deployed_network_keeps_its_bits(model: VisionMamba, images: Dataset, recipe: str) -> None:  # noqa: F811
    simulation = quantize(model, get_recipe(recipe), images, check=False).model
    batch, _ = next(images.batches(5))
    expected = simulation(batch)
    with other_device() as device, backends.recorded() as ran, torch.no_grad():
        assert move(simulation, device)
        found = simulation(batch.to(device)).cpu()
        simulation.to(CPU)
    assert torch.equal(found, expected)
    assert {op for op, _ in ran} >= {"exact"}
