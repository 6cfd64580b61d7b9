"""The engine alone: recipes of one model take turns, in several processes.

    python benchmarks/bench_recipes.py [--model vim_tiny] [--recipes visq-w8a8-fused,visq-w8a8,kscaled-w8a8]
                                       [--threads 2] [--batch 1,8] [--processes 3] [--seconds 5] [--keep FOLDER]
                                       [--out FILE]

Weights are random where no checkpoint is packaged, and calibration is on a few images of noise: speed depends on
neither. A process is a sample of its own, because where its memory lies makes a difference: a median is given for
each. `--keep` leaves artifacts in a folder, where another run finds them. Prints milliseconds an image; writes
benchmarks/results/bench_recipes_MODEL.json unless --out says otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

import visq
from bench_engine import noise_images
from common import machine, write_json
from visq.analysis.bench import WARM_UP, example, take_turns
from visq.artifact import is_artifact
from visq.models import create_model, list_models, load_model
from visq.runtime import load_engine


def artifact(name: str, recipe: str, room: Path) -> Path:
    """`name` quantized by a recipe, in a folder of `room`; one that is there already is taken."""
    folder = room / f"{name}-{recipe}"
    if is_artifact(folder):
        return folder
    packaged = next(card for card in list_models() if card.name == name).weights is not None
    torch.manual_seed(0)
    model = load_model(name) if packaged else create_model(name)
    images = noise_images(room, model.card.preprocess.image_size, model.card.preprocess.channels)
    visq.quantize(model, recipe, images, samples=4, out=folder)
    return folder


def take(folders: list[Path], batches: list[int], threads: int, seconds: float) -> dict[str, dict[int, float]]:
    """Milliseconds an image, the median of one process: {artifact: {batch: ms}}."""
    engines = {folder.name: load_engine(folder, threads=threads) for folder in folders}
    found: dict[str, dict[int, float]] = {name: {} for name in engines}
    for batch in batches:
        runs = {name: partial(engine, example(engine.preprocess, batch)) for name, engine in engines.items()}
        for run in runs.values():
            for _ in range(WARM_UP):
                run()
        for name, times in take_turns(runs, set(), seconds).items():
            found[name][batch] = 1e3 * statistics.median(times) / batch
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_tiny")
    parser.add_argument("--recipes", default="visq-w8a8-fused,visq-w8a8,kscaled-w8a8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--take", nargs="+", type=Path, help=argparse.SUPPRESS)  # what one process does
    args = parser.parse_args()
    batches = [int(x) for x in args.batch.split(",")]
    if args.take:
        print(json.dumps(take(args.take, batches, args.threads, args.seconds)))
        return
    recipes = args.recipes.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        room = args.keep or Path(temporary)
        room.mkdir(parents=True, exist_ok=True)
        folders = [artifact(args.model, recipe, room) for recipe in recipes]
        command = [
            sys.executable,
            __file__,
            "--threads",
            args.threads,
            "--batch",
            args.batch,
            "--seconds",
            args.seconds,
        ]
        command += ["--take", *folders]
        samples: list[dict[str, Any]] = []
        for _ in range(args.processes):
            done = subprocess.run([str(x) for x in command], capture_output=True, text=True, check=True)
            samples.append(json.loads(done.stdout))
    rows = [
        {"recipe": recipe, "batch": batch, "ms_an_image": [s[f"{args.model}-{recipe}"][str(batch)] for s in samples]}
        for recipe in recipes
        for batch in batches
    ]
    for row in rows:
        times = ", ".join(f"{ms:.2f}" for ms in row["ms_an_image"])
        print(f"{row['recipe']:24s} batch {row['batch']:2d}, {args.threads} threads: {times} ms an image")
    out = args.out or Path(__file__).parent / "results" / f"bench_recipes_{args.model}.json"
    write_json(out, {"model": args.model, "threads": args.threads, "rows": rows, "machine": machine()})


if __name__ == "__main__":
    main()
