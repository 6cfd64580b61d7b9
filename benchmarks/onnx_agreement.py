"""Exported ONNX files against the engine on all test images: top-1, equal decisions, decibels, milliseconds, bytes.

    python benchmarks/onnx_agreement.py --model vmamba_nano_imagenette --data val.tar --calib train-0.tar
        [--recipes a,b,...] [--samples 128] [--limit N] [--threads 1] [--artifacts FOLDER] [--no-times]

Each recipe is calibrated once (seed 0), or read from FOLDER/MODEL--RECIPE, and exported in the form of the scan that is
fastest in each runtime, as `visq bench` does. All three run the same batches in turns. Finished recipes are kept, so
that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import visq
from common import commit, machine, write_json
from visq.analysis.evaluate import limited
from visq.artifact import artifact_bytes, load, read_config
from visq.data import open_dataset
from visq.export.network import artifact_to_onnx
from visq.export.runtimes import RUNTIMES, open_in
from visq.export.scan import CHUNKS

RECIPES = "minmax-w8a8-linear,minmax-w8a8,kscaled-w8a8,visq-w8a8-fused,visq-w4a8-fused,visq-rotated-w4a4-fused"
BATCH = 8


def measure(model: str, recipe: str, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = (args.artifacts or Path(folder)) / f"{model}--{recipe}"
        if not out.exists():
            visq.quantize(model, recipe, args.calib or args.data, samples=args.samples, out=out)
        card, calibration = load(out).card, read_config(out).provenance.calibration
        data = limited(open_dataset(args.data, card.preprocess, split="test", classes=card.classes), args.limit)
        files = {name: artifact_to_onnx(out, CHUNKS[name]) for name in RUNTIMES}
        runs = {"engine": visq.load(out, backend="int", threads=args.threads)}
        runs |= {name: open_in(name, content, args.threads) for name, content in files.items()}
        outputs: dict[str, list[np.ndarray]] = {name: [] for name in runs}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        labels = []
        for images, target in data.batches(BATCH):
            labels.append(target.numpy())
            for name, run in runs.items():
                start = time.perf_counter()
                outputs[name].append(run(images.numpy()))
                seconds[name].append((time.perf_counter() - start) / len(images))
        bytes_of = {"engine": artifact_bytes(out), **{name: len(content) for name, content in files.items()}}
    logits, truth = {name: np.concatenate(parts) for name, parts in outputs.items()}, np.concatenate(labels)
    exact = logits["engine"].astype(np.float64)
    rows = {}
    for name, found in logits.items():
        noise = float(np.square(found - exact).sum())
        rows[name] = {
            "top1": 100 * float((found.argmax(1) == truth).mean()),
            "agree": 100 * float((found.argmax(1) == exact.argmax(1)).mean()),
            "sqnr_db": None if noise == 0 else 10 * float(np.log10(np.square(exact).sum() / noise)),
            "ms": 1e3 * float(np.median(seconds[name])),
            "bytes": bytes_of[name],
        }
    if args.no_times:
        for row in rows.values():
            del row["ms"]
    settings = {
        "model": model,
        "recipe": recipe,
        "samples": calibration and calibration.images,
        "limit": args.limit,
        "n": len(truth),
        "batch": BATCH,
    }
    return {**settings, "runtimes": rows, "commit": commit()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_nano_fmnist")
    parser.add_argument("--data", default="fashion-mnist", help="the test images")
    parser.add_argument("--calib", help="the calibration images, where --data has none")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--limit", type=int, help="at most so many images; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--artifacts", type=Path, help="where artifacts are kept")
    parser.add_argument("--no-times", action="store_true", help="leaves out milliseconds, on a busy machine")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "onnx_agreement.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}

    def kept(row: dict[str, Any]) -> bool:
        """Whether a row was measured as it would be now."""
        return row["limit"] == args.limit and ("ms" in row["runtimes"]["engine"]) != args.no_times

    for recipe in args.recipes.split(","):
        same = [row for row in found["rows"] if (row["model"], row["recipe"]) == (args.model, recipe)]
        if not any(map(kept, same)):
            found["rows"] = [row for row in found["rows"] if row not in same] + [measure(args.model, recipe, args)]
            found["machine"] = machine()
            write_json(args.out, found)
        row = next(row for row in found["rows"] if (row["model"], row["recipe"]) == (args.model, recipe))
        parts = [
            f"{name}: {r['top1']:.2f} %, same {r['agree']:.2f} %, {r['bytes'] / 1e6:.2f} MB"
            + (f", {r['ms']:.2f} ms" if "ms" in r else "")
            for name, r in row["runtimes"].items()
        ]
        print(f"{args.model} {recipe} ({row['n']} images): " + "; ".join(parts), flush=True)


if __name__ == "__main__":
    main()
