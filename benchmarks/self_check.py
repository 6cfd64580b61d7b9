"""Holds the self-check's verdict against the real loss, on training images. docs/self-check.md chose its thresholds so.

    python benchmarks/self_check.py --model vim_nano_fmnist --data fashion-mnist --recipes minmax-w8a8,kscaled-w4a4
    python benchmarks/self_check.py --model vim_nano_fmnist --data fashion-mnist --case black --recipes visq-w8a8

Rows are appended to --out, so that several calls fill one file.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import drawn_others, machine, write_json
from visq import pipeline
from visq.analysis import EngineModel
from visq.artifact import save
from visq.data import Dataset, open_dataset
from visq.models import load_model
from visq.recipes import get_recipe


def outlier_channels(model: Any) -> None:
    """Makes two channels large without changing the function, as norms with outliers do."""
    for block in model.layers:
        for channel, factor in ((5, 1000.0), (40, 300.0)):
            block.norm.weight[channel] *= factor
            block.mixer.in_proj.weight[:, channel] /= factor


def dead_direction(model: Any) -> None:
    """Silences one direction of one block, as pruning does."""
    model.layers[1].mixer.x_proj_b.weight.zero_()


def weight_outlier(model: Any) -> None:
    """Sets one weight to 1e4."""
    model.layers[1].mixer.in_proj.weight[3, 5] = 1e4


def unchanged(model: Any) -> None:
    """Leaves the network as it is."""


CASES: dict[str, Callable[[Any], None]] = {
    "plain": unchanged,
    "black": unchanged,
    "outlier_channels": outlier_channels,
    "dead_direction": dead_direction,
    "weight_outlier": weight_outlier,
}


def logits(network: Any, images: Dataset) -> Tensor:
    """Returns the logits of all images, [n, classes]."""
    with torch.no_grad():
        return torch.cat([network(batch) for batch, _ in images.batches(50)])


def black_images(model: Any, count: int = 4) -> Dataset:
    """Returns black images, which no calibration can learn from."""
    folder = Path(tempfile.mkdtemp())
    size = model.card.preprocess.image_size
    for index in range(count):
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(folder / f"{index}.png")
    return open_dataset(str(folder), model.card.preprocess, split="calib")


def measure(model: Any, source: Dataset, recipe: str, case: str, samples: int, images: int) -> dict[str, Any]:
    """Quantizes a copy of the model, and returns the check beside what it loses on other images of the source."""
    calibration, held_out = pipeline.draw(source, samples, 64, seed=0)
    used = set(source.drawn(samples, 0))
    data = source.select(drawn_others(source, images, used, 99))
    labels, exact = torch.tensor(data.labels), logits(model, data)
    if case == "black":
        calibration = black_images(model)
    result = pipeline.quantize(copy.deepcopy(model), get_recipe(recipe), calibration, held_out=held_out)
    with tempfile.TemporaryDirectory() as folder:
        save(result.model, Path(folder) / "a")
        found = logits(EngineModel(Path(folder) / "a"), data)
    assert result.check is not None
    return {
        "case": case,
        "model": model.card.name,
        "recipe": recipe,
        "samples": len(calibration),
        "check": result.check.model_dump(mode="json"),
        "n": len(data),
        "fp32_top1": 100 * float((exact.argmax(1) == labels).float().mean()),
        "top1": 100 * float((found.argmax(1) == labels).float().mean()),
        "same_decisions": 100 * float((found.argmax(1) == exact.argmax(1)).float().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vim_nano_fmnist")
    parser.add_argument("--data", default="fashion-mnist", help="training images with labels")
    parser.add_argument("--recipes", default="minmax-w8a8,kscaled-w8a8,minmax-w4a4,kscaled-w4a4")
    parser.add_argument("--case", choices=CASES, default="plain")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/self_check.json"))
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    with torch.no_grad():
        CASES[arguments.case](model)
    source = open_dataset(arguments.data, model.card.preprocess, split="calib", classes=model.card.classes)
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    for recipe in arguments.recipes.split(","):
        row = measure(model, source, recipe, arguments.case, arguments.samples, arguments.images)
        rows.append(row)
        print(f"{recipe}: {row['check']['verdict']}, drop {row['fp32_top1'] - row['top1']:.1f}", flush=True)
        write_json(arguments.out, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
