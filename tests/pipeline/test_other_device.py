"""Quantizing, measuring and diagnosing away from the CPU."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.other_device import other_device
from visq.analysis import Subject, compare, diagnose, evaluate
from visq.artifact import load
from visq.data import Dataset
from visq.device import CPU, device_of
from visq.models import VisionMamba
from visq.pipeline import quantize
from visq.recipes import get_recipe
from visq.simulation import move


def test_an_artifact_made_there_is_the_cpus(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    recipe = get_recipe("minmax-channel-w8a8")
    expected = quantize(copy.deepcopy(model), recipe, images)
    with other_device() as device:
        found = quantize(model, recipe, images, out=tmp_path / "a", device=device)
        assert device_of(found.model) == CPU
    assert found.check is not None and expected.check is not None
    assert found.check.verdict == expected.check.verdict
    batch, _ = next(images.batches(24))
    exact = expected.model(batch)
    torch.testing.assert_close(load(tmp_path / "a")(batch), exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))


def test_a_simulation_there_rounds_in_float32(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    quantized = quantize(copy.deepcopy(model), get_recipe("minmax-channel-w8a8"), images, check=False).model
    expected = diagnose(quantized, images, images=4)
    batch, _ = next(images.batches(24))
    exact = quantized(batch)
    with other_device() as device:
        assert move(model, device)  # FP32 has no bits of the engine to lose
        kept = move(quantized, device)
        with torch.no_grad():
            found = quantized(batch.to(device)).cpu()
        report = diagnose(quantized, images, images=4)
        measured = evaluate(quantized, images, batch_size=7)
        for network in (quantized, model):
            network.to(CPU)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0 if kept else 0.05 * float(exact.abs().max()))
    assert measured.n == 24
    for here, there in zip(expected["sites"], report["sites"], strict=True):
        assert here["sqnr_db"] == pytest.approx(there["sqnr_db"], abs=1.0), here["name"]


def test_compare_there(model: VisionMamba, images: Dataset, tmp_path: Path) -> None:
    recipes, cache = [get_recipe("minmax-channel-w8a8-linear")], tmp_path / "rows.jsonl"
    expected = compare([Subject(copy.deepcopy(model), images, images)], recipes, samples=8, cache=cache)
    with other_device() as device:
        found = compare([Subject(model, images, images)], recipes, samples=8, cache=cache, device=device)
        model.to(CPU)
    assert [row["top1"] for row in found] == pytest.approx([row["top1"] for row in expected], abs=9)
    assert len(cache.read_text().splitlines()) == 4  # rows of one device do not stand for another's
