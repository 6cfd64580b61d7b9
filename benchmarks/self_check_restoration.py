"""Holds the self-check's verdict against the loss of PSNR, for a network that returns images (docs/self-check.md).

    python benchmarks/self_check_restoration.py --checkpoint team07_DVMSR.pth --calib train-0.tar --pairs train-1.tar
        [--recipes minmax-w8a8,visq-w8a8] [--samples 64] [--images 20]

No image of Set5 is used: the pairs are training images of 224 pixels and the same images downscaled by 4 (bicubic).
Rows are appended to --out; recipes that stand there already are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common import machine, write_json
from visq import pipeline
from visq.analysis.super_resolution import evaluate_restoration
from visq.data import open_dataset
from visq.data.preprocess import Preprocess
from visq.models import load_model
from visq.recipes import get_recipe

RECIPES = (
    "kscaled-w8a8,visq-w8a8,minmax-w8a8,percentile-w8a8,kscaled-w6a6,visq-w6a6,minmax-w6a6,omse-w4a8,visq-w4a8,"
    "visq-w4a4,omse-w4a4,kscaled-w4a4,visq-w8a8-linear,visq-w6a6-linear,visq-w4a4-linear"
)


def write_pairs(source: str, images: int, scale: int, folder: Path) -> tuple[Path, Path]:
    """Writes originals of 224 pixels and downscaled ones as PNG; returns their folders."""
    for name in ("hr", "lr"):
        (folder / name).mkdir()
    whole = Preprocess(image_size=224, resize=224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels, _ = next(iter(open_dataset(source, whole, split="calib").subset(images, 1).batches(images)))
    for index, image in enumerate((pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()):
        high = Image.fromarray(np.ascontiguousarray(image))
        high.save(folder / "hr" / f"{index:03d}.png")
        side = high.width // scale
        high.resize((side, side), Image.Resampling.BICUBIC).save(folder / "lr" / f"{index:03d}.png")
    return folder / "hr", folder / "lr"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--calib", required=True, help="training images for calibration, a folder or tar")
    parser.add_argument("--pairs", required=True, help="other training images, from which the pairs are made")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/self_check_restoration.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model("dvmsr", arguments.checkpoint)
    source = open_dataset(arguments.calib, model.card.preprocess, split="calib")
    calibration, held_out = pipeline.draw(source, arguments.samples, 64, seed=0)
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        high, low = write_pairs(arguments.pairs, arguments.images, model.config.upscale, Path(folder))
        exact = evaluate_restoration(model, high, low).mean
        for name in arguments.recipes.split(","):
            if name in [row["recipe"] for row in rows]:
                continue
            recipe = get_recipe(name).without_positions()
            network = copy.deepcopy(model)
            result = pipeline.quantize(network, recipe, calibration, held_out=held_out)
            assert result.check is not None
            found = evaluate_restoration(result.model, high, low).mean
            row = {"recipe": name, "check": result.check.model_dump(mode="json"), "fp32_psnr": exact, "psnr": found}
            rows.append(row)
            print(f"{name}: {result.check.verdict}, {exact:.2f} -> {found:.2f} dB", flush=True)
            write_json(arguments.out, {"machine": machine(), "images": arguments.images, "rows": rows})


if __name__ == "__main__":
    main()
