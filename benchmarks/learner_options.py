"""What the options of the learner `distill` bring, on training images.

    python benchmarks/learner_options.py --model vim_nano_fmnist --calib fashion-mnist --data fashion-mnist
        [--recipe visq-rotated-w4a4] [--samples 128] [--limit 512] [--epochs 4] [--batch 16] [--seeds 1] [--only ...]

The network is calibrated once for each seed; every setting of the learner starts from a copy. Divergence from FP32 and
decisions are those of images that took no part. Finished rows are kept in the results,
benchmarks/results/learner_options_MODEL.json, and not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import safe_open
from torch import Tensor, nn

from common import commit, drawn_others, machine, write_json
from visq.calibrate import calibrate
from visq.calibrate.learners import Distill, NetworkRun, distill
from visq.calibrate.learners.distill import Student, distance
from visq.data import open_dataset
from visq.models import load_model
from visq.quant.site import WEIGHT, named_sites, site_parameter
from visq.recipes import get_recipe
from visq.stages.stream import Stream

PACKAGED = get_recipe("visq-distilled-w4a4").scope.learners[0].params
SETTINGS: dict[str, dict[str, Any]] = {
    "no learner": {"epochs": 0},
    "as it is": {},
    "batch 4": {"batch": 4},
    "blocks 1": {"blocks": 1.0},
    "mirror, crop": {"mirror": 0.5, "crop": 0.5},
    "blocks 1, mirror, crop": {"blocks": 1.0, "mirror": 0.5, "crop": 0.5},
    "average 0.9": {"average": 0.9},
    "average 0.97": {"average": 0.97},
    "drop 0.25": {"drop": 0.25},
    "drop 0.5": {"drop": 0.5},
    "drop 0.25, average 0.97": {"drop": 0.25, "average": 0.97},
    "visq-distilled": PACKAGED,
    "twice the rate": {**PACKAGED, "lr": 6e-4},
    "weights alone": PACKAGED,
    "biases and norms alone": PACKAGED,
    "steps alone": PACKAGED,
    "without steps": PACKAGED,
}
#: What a setting learns, where it does not learn everything.
LEARNED = {
    "weights alone": {"weight"},
    "biases and norms alone": {"other"},
    "steps alone": {"step"},
    "without steps": {"weight", "other"},
}
AT_ONCE = 16


class Part(Student):
    """A student that learns some kinds of its leaves: `weight` (those with codes), `other` parameters, `step`."""

    def __init__(self, model: nn.Module, kinds: set[str]) -> None:
        super().__init__(model)
        coded = {
            id(site_parameter(model, name, site))
            for name, site in named_sites(model)
            if site.kind == WEIGHT and site.quantizer is not None
        }
        for parameter in self.parameters.values():
            parameter.requires_grad_(("weight" if id(parameter) in coded else "other") in kinds)
        for step in self.log_scales.values():
            step.requires_grad_("step" in kinds)


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in images.split(AT_ONCE)])


def learn(
    fp32: nn.Module,
    model: nn.Module,
    images: Tensor,
    exact: Tensor,
    folder: Path,
    seed: int,
    options: dict[str, Any],
    kinds: set[str] | None,
) -> list[float]:
    """Tunes the quantized network and returns its held-back losses, the initial one first."""
    stream = Stream.create(folder / "teacher")
    for batch in zip(images.split(AT_ONCE), exact.split(AT_ONCE), strict=True):
        stream.append(batch)
    stream.close()
    teacher = Stream(folder / "teacher", torch.device("cpu"))
    run = NetworkRun(model, fp32, teacher, folder, seed, report=lambda line: None)
    student = Student if kinds is None else partial(Part, kinds=kinds)
    with torch.enable_grad(), patch.object(distill, "Student", student):
        Distill(**options).tune(run)
    found = folder / "distill.safetensors"
    if not found.exists():
        return []
    with safe_open(found, framework="pt") as file:
        losses: list[float] = json.loads(file.metadata()["losses"])
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True, help="training images that are not calibrated with")
    parser.add_argument("--recipe", default="visq-rotated-w4a4")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", help="names of settings with semicolons; all by default")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out or Path(__file__).parent / "results" / f"learner_options_{args.model}.json"
    of = {key: getattr(args, key) for key in ("model", "recipe", "samples", "limit", "epochs", "batch")}
    of["others"] = "drawn"  # they were a prefix of drawn ones, without the last classes
    rows: list[dict[str, Any]] = []
    if out.exists():
        before = json.loads(out.read_text())
        if {key: before.get(key) for key in of} != of:
            raise SystemExit(f"{out} is of other settings: delete it, or choose --out")
        rows = before["rows"]
    fp32 = load_model(args.model).eval()
    card = fp32.card
    source = open_dataset(args.calib, card.preprocess, split="calib", classes=card.classes)
    held = open_dataset(args.data, card.preprocess, split="train", classes=card.classes)
    for seed in range(args.seeds):
        left = [
            name
            for name in (list(SETTINGS) if args.only is None else args.only.split(";"))
            if not any((row["setting"], row["seed"]) == (name, seed) for row in rows)
        ]
        if not left:
            continue
        chosen = source.drawn(args.samples, seed)
        taken = set(chosen) if args.data == args.calib else set()
        others = drawn_others(held, args.limit, taken, 1000 + seed)
        images, labels = (torch.cat(x) for x in zip(*held.select(others).batches(AT_ONCE), strict=True))
        seen = torch.cat([batch for batch, _ in source.select(chosen).batches(AT_ONCE)])
        exact, targets = outputs(fp32, images), outputs(fp32, seen)
        base = copy.deepcopy(fp32)
        with tempfile.TemporaryDirectory() as folder:
            calibrate(base, get_recipe(args.recipe), source.select(chosen), work_dir=Path(folder), seed=seed)
        for name in left:
            model = copy.deepcopy(base)
            options = {"epochs": args.epochs, "batch": args.batch, **SETTINGS[name]}
            with tempfile.TemporaryDirectory() as folder:
                losses = learn(fp32, model, seen, targets, Path(folder), seed, options, LEARNED.get(name))
            found = outputs(model, images)
            same = 100 * float((found.argmax(1) == exact.argmax(1)).double().mean())
            top1 = 100 * float((found.argmax(1) == labels).double().mean())
            row = {"setting": name, "seed": seed, "held_back": losses, "kl": float(distance(found, exact))}
            rows.append({**row, "same": same, "top1": top1, "commit": commit()})
            print(rows[-1], flush=True)
            write_json(out, {**of, "rows": rows, "machine": machine()})


if __name__ == "__main__":
    main()
