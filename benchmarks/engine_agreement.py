"""The integer engine against the simulation on all test images: top-1 of both, how many predictions and logits agree.

    python benchmarks/engine_agreement.py [--recipes a,b,...] [--samples 256] [--threads 2] [--limit N]
    python benchmarks/engine_agreement.py --model vmamba_nano_imagenette --data val.tar --calib train-0.tar
        --samples 128 --out benchmarks/results/engine_agreement_vmamba_nano_imagenette.json

Each recipe is calibrated once (seed 0), saved, loaded again by both, and run on the whole test set. Finished recipes
are kept in the results, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import visq
from common import commit, machine, write_json
from visq.analysis import EngineModel
from visq.analysis.evaluate import limited
from visq.artifact import load
from visq.data import open_dataset
from visq.models import load_model

RECIPES = (
    "visq-w8a8,visq-w6a6,visq-w4a8,visq-w4a4,minmax-w8a8,kscaled-w8a8,kscaled-w8a8-linear,ptq4vm-grid-w8a8,qmamba-w8a8,quarot-w8a8-full,ptq4vit-w8a8-full,"
    "minmax-w4a4,kscaled-w4a4,kscaled-w4a4-linear,ptq4vm-grid-w4a4,qmamba-w4a4,quarot-w4a4-full,kscaled-w4a8,kscaled-w6a6"
)


def measure(model: str, recipe: str, data: str, calib: str, samples: int, limit: int | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "a"
        visq.quantize(load_model(model), recipe, calib, samples=samples, out=out, check=False)
        simulation, engine = load(out), EngineModel(out)
        card = simulation.card
        dataset = limited(open_dataset(data, card.preprocess, split="test", classes=card.classes), limit)
        same, agree, right, seconds = 0, 0, [0, 0], [0.0, 0.0]
        for images, labels in dataset.batches(32):
            logits = []
            for index, network in enumerate((simulation, engine)):
                start = time.perf_counter()
                logits.append(network(images))
                seconds[index] += time.perf_counter() - start
                right[index] += int((logits[index].argmax(1) == labels).sum())
            same += int((logits[0] == logits[1]).all(1).sum())
            agree += int((logits[0].argmax(1) == logits[1].argmax(1)).sum())
    n = len(dataset)
    return {
        "recipe": recipe,
        "n": n,
        "top1_sim": 100 * right[0] / n,
        "top1_int": 100 * right[1] / n,
        "agree": 100 * agree / n,
        "same_logits": 100 * same / n,  # images of which every logit has the same bits
        "float_operations": len(engine.engine.in_float),
        "operations": len(engine.engine.program.operations),
        "ms_sim": 1e3 * seconds[0] / n,
        "ms_int": 1e3 * seconds[1] / n,
        "kernel": engine.engine.kernel,
        "commit": commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_nano_fmnist")
    parser.add_argument("--data", default="fashion-mnist", help="the test images")
    parser.add_argument("--calib", help="the calibration images, where --data has none")
    parser.add_argument("--threads", type=int, help="of the simulation")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--limit", type=int, help="test images, spread over all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "engine_agreement.json")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    sha = load_model(args.model).card.checkpoint_sha256
    if args.out.exists() and (found := json.loads(args.out.read_text()))["checkpoint_sha256"] == sha:
        rows = found["rows"]
    for recipe in args.recipes.split(","):
        if recipe in {row["recipe"] for row in rows}:
            continue
        row = measure(args.model, recipe, args.data, args.calib or args.data, args.samples, args.limit)
        rows.append(row)
        print(
            f"{recipe}: sim {row['top1_sim']:.2f}, int {row['top1_int']:.2f}, same logits {row['same_logits']:.2f} %",
            flush=True,
        )
        write_json(args.out, {"rows": rows, "checkpoint_sha256": sha, "machine": machine()})


if __name__ == "__main__":
    main()
