"""How close the logits of recipes are to FP32's, on training images: finer than top-1, where a point is a few images.

    python benchmarks/closeness.py --model vim_micro192_imagenette --calib train-0.tar --data train-1.tar
        --recipes visq-w8a8-fused,visq-w8a8,own.yaml [--samples 128] [--limit 1600] [--seeds 3]

For each recipe (a name or a YAML file) and seed, on the engine: signal to noise of the logits less their mean in
decibels, share of equal predictions, top-1. Finished cells are kept in the results,
benchmarks/results/closeness_MODEL.json, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import visq
from common import commit, machine, write_json
from visq.analysis import EngineModel
from visq.data import open_dataset
from visq.models import load_model
from visq.quant.site_error import decibels


def measure(found: Tensor, fp32: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Of logits [images, classes]."""
    signal, error = ((x - x.mean(1, keepdim=True)).double() for x in (fp32, found - fp32))
    return {
        "sqnr_db": decibels(float(signal.square().sum()), float(error.square().sum())),
        "same": 100 * float((found.argmax(1) == fp32.argmax(1)).double().mean()),
        "top1": 100 * float((found.argmax(1) == labels).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True, help="training images that are not calibrated with")
    parser.add_argument("--recipes", required=True)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--limit", type=int, default=1600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out or Path(__file__).parent / "results" / f"closeness_{args.model}.json"
    model = load_model(args.model).eval()
    card = model.card
    dataset = open_dataset(args.data, card.preprocess, split="test", classes=card.classes)
    batches = list(dataset.subset(args.limit, 0).batches(32))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.inference_mode():
        fp32 = torch.cat([model(part) for part in images.split(32)])
    of = {"checkpoint_sha256": card.checkpoint_sha256, "images": len(images), "samples": args.samples}
    rows: list[dict[str, Any]] = []
    if out.exists():
        before = json.loads(out.read_text())
        if {key: before[key] for key in of} != of:
            raise SystemExit(f"{out} is of another model or other numbers of images: delete it, or choose --out")
        rows = before["rows"]
    for recipe in args.recipes.split(","):
        for seed in range(args.seeds):
            name = Path(recipe).stem
            if any((row["recipe"], row["seed"]) == (name, seed) for row in rows):
                continue
            with tempfile.TemporaryDirectory() as folder:
                artifact = Path(folder) / "a"
                visq.quantize(args.model, recipe, args.calib, samples=args.samples, seed=seed, out=artifact)
                engine = EngineModel(artifact)
                found = torch.cat([engine(part) for part in images.split(32)])
            rows.append({"recipe": name, "seed": seed, **measure(found, fp32, labels), "commit": commit()})
            print(rows[-1], flush=True)
            write_json(out, {**of, "rows": rows, "machine": machine()})


if __name__ == "__main__":
    main()
