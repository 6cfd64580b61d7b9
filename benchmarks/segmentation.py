"""A network that gives each pixel a class, quantized with every recipe that applies: mean IoU over images with masks.

    python benchmarks/segmentation.py --checkpoint vmamba_nano_camvid.safetensors --masks val.tar --calib train.tar
        [--families minmax kscaled ...] [--bits w8a8 ...] [--scopes full] [--samples 32] [--limit N] [--threads 1]

The engine measures, on images in their own size; on `--agree` images its logits are held against the simulation's. A
recipe with scales per position runs without them; the row says so. A recipe that does not apply says why. Rows that
stand in the results already are kept; `--table` only writes the table.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import commit, machine, write_json
from visq import pipeline
from visq.analysis import EngineModel
from visq.analysis.segmentation import evaluate_masks
from visq.data import open_dataset
from visq.data.confusion import Segmentation
from visq.data.masks import MaskPair, open_masks, subset
from visq.errors import VisqError
from visq.models import load_model
from visq.recipes import get_recipe

FAMILIES = (
    *("minmax", "minmax-channel", "percentile", "omse", "smoothquant", "quarot", "mambaquant", "similarity", "gptq"),
    *("kscaled", "qmamba", "ptq4vm-grid", "ptq4vm", "visq", "visq-rotated", "visq-learned", "adaround", "ptq4vit"),
)
BITS = ("w8a8", "w6a6", "w4a8", "w4a4")
SCOPES = ("full",)


def scores(found: Segmentation, model: Any) -> dict[str, Any]:
    names = model.card.classes or [str(i) for i in range(len(found.iou))]
    iou = {name: None if value is None else round(100 * value, 3) for name, value in zip(names, found.iou, strict=True)}
    return {"mean_iou": 100 * found.mean_iou, "pixels_right": 100 * found.accuracy, "classes": iou, "n": found.images}


def equal_bits(engine: EngineModel, pairs: list[MaskPair]) -> int:
    """How many images have the same logits, to the bit, in the simulation and on the engine."""
    count = 0
    for pair in pairs:
        pixels, _ = pair.read(engine.card.preprocess.channels)
        images = engine.card.preprocess.normalize(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])
        with torch.no_grad():
            count += int(np.array_equal(engine.simulation(images).numpy(), engine(images).numpy()))
    return count


def row(model: Any, pairs: list[MaskPair], family: str, bits: str, scope: str, args: argparse.Namespace) -> Any:
    """Mean IoU of the network under one recipe, or why there is none."""
    asked = get_recipe(f"{family}-{bits}-{scope}")
    recipe = asked.without_positions()
    result: dict[str, Any] = {"family": family, "bits": bits, "scope": scope, "recipe": recipe.name}
    result |= {"samples": args.samples, "seed": args.seed, "commit": commit(), "without_positions": recipe is not asked}
    try:
        pipeline.check_applies(model, recipe)
    except VisqError as error:
        return result | {"does_not_apply": str(error)}
    images = open_dataset(args.calib, model.card.preprocess, split="calib").subset(args.samples, args.seed)
    network, start = copy.deepcopy(model), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        pipeline.quantize(network, recipe, images, seed=args.seed, out=artifact, check=False)
        seconds = time.perf_counter() - start
        engine = EngineModel(artifact, threads=args.threads)
        found = scores(evaluate_masks(engine, pairs, ignore=args.ignore), model)
        agree = subset(pairs, args.agree)
        result |= {"equal_bits": equal_bits(engine, agree), "of": len(agree), "in_float": len(engine.engine.in_float)}
    return result | found | {"calibration_seconds": round(seconds, 1)}


def study(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    model = load_model("vmamba_seg", args.checkpoint)
    pairs = subset(open_masks(args.masks), args.limit)
    done = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    if done.get("checkpoint_sha256", model.card.checkpoint_sha256) != model.card.checkpoint_sha256:
        raise SystemExit(f"{args.out} holds results of another checkpoint; give another --out")
    if "fp32" not in done:
        done |= {"checkpoint_sha256": model.card.checkpoint_sha256}
        done["fp32"] = scores(evaluate_masks(model, pairs, ignore=args.ignore), model)
        print(f"fp32: {done['fp32']['mean_iou']:.2f} %", flush=True)
    kept = {tuple(old[key] for key in ("family", "bits", "scope", "samples", "seed")) for old in done["rows"]}
    for bits in args.bits:
        for scope in args.scopes:
            for family in args.families:
                if (family, bits, scope, args.samples, args.seed) in kept:
                    continue
                found = row(model, pairs, family, bits, scope, args)
                done["rows"].append(found)
                print(found["recipe"], found.get("does_not_apply") or f"{found['mean_iou']:.2f} %", flush=True)
                write_json(args.out, done | {"machine": machine()})
    return done


def markdown(done: dict[str, Any]) -> str:
    """Mean IoU in percent: a row for each recipe and scope, a column for each width. A star: no scales per position."""
    cells = {(old["family"], old["scope"], old["bits"]): old for old in done["rows"]}
    lines = ["| recipe | scope | " + " | ".join(BITS) + " |", "|---|---|" + "---:|" * len(BITS)]
    for family, scope in dict.fromkeys((old["family"], old["scope"]) for old in done["rows"]):
        found = [cells.get((family, scope, bits)) for bits in BITS]
        star = "*" if any(one and one["without_positions"] for one in found) else ""
        texts = ["" if one is None else f"{one['mean_iou']:.2f}" if "mean_iou" in one else "-" for one in found]
        lines.append(f"| {family}{star} | {scope} | " + " | ".join(texts) + " |")
    reasons = {one["family"]: one["does_not_apply"] for one in done["rows"] if "does_not_apply" in one}
    ran = [one for one in done["rows"] if "of" in one]
    equal, of = sum(one["equal_bits"] for one in ran), sum(one["of"] for one in ran)
    lines += ["", *(f"{family} does not apply: {reason}" for family, reason in reasons.items())]
    lines.append(f"engine and simulation: equal bits in {equal} of {of} images")
    return "\n".join([f"FP32 {done['fp32']['mean_iou']:.2f} %, {done['fp32']['n']} images", "", *lines]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True, help="images and labels to measure on, a folder or tar")
    parser.add_argument("--calib", required=True, help="training images, a folder or tar")
    parser.add_argument("--ignore", type=int, default=11, help="class number that does not count")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--scopes", nargs="+", default=SCOPES)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--agree", type=int, default=2, help="images on which engine and simulation are compared")
    parser.add_argument("--limit", type=int, help="images to measure on, spread over all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="write the table of the results that are there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "segmentation.json")
    arguments = parser.parse_args()
    outcome = json.loads(arguments.out.read_text()) if arguments.table else study(arguments)
    arguments.out.with_suffix(".md").write_text(markdown(outcome))
    print(markdown(outcome))
