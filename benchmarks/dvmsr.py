"""DVMSR, x4 super-resolution, quantized with every recipe that applies: PSNR of the luma on Set5.

    python benchmarks/dvmsr.py --checkpoint team07_DVMSR.pth --hr Set5/HR --lr Set5/LR_bicubic/X4 --calib train-0.tar
        [--families minmax kscaled ...] [--bits w8a8 ...] [--scopes linear full] [--samples 64] [--threads 1]

Calibration: crops of 48 pixels of training images resized to 56, a quarter of 224 (bicubic). Images have any size, so a
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
from PIL import Image

from common import commit, machine, write_json
from visq.analysis.super_resolution import Restoration, evaluate_restoration, pairs, psnr_y
from visq.calibrate import calibrate
from visq.data import open_dataset
from visq.errors import VisqError
from visq.models import load_model
from visq.pipeline.quantize import check_applies
from visq.recipes import get_recipe

FAMILIES = (
    *("minmax", "minmax-channel", "percentile", "omse", "smoothquant", "quarot", "mambaquant", "similarity", "gptq"),
    *("kscaled", "qmamba", "ptq4vm-grid", "ptq4vm", "visq", "visq-learned", "adaround", "ptq4vit"),
)
BITS = ("w8a8", "w6a6", "w4a8", "w4a4")
SCOPES = ("linear", "full")


def bicubic(args: argparse.Namespace, scale: int) -> Restoration:
    """What interpolation gives on the same pairs."""

    def enlarged(low: Any) -> Any:
        size = (low.shape[1] * scale, low.shape[0] * scale)
        return np.asarray(Image.fromarray(low).resize(size, Image.Resampling.BICUBIC))

    found = pairs(args.hr, args.lr, scale)
    return Restoration({name: psnr_y(enlarged(low), high, scale) for name, (high, low) in found.items()})


def row(model: Any, family: str, bits: str, scope: str, args: argparse.Namespace) -> dict[str, Any]:
    """PSNR of the network under one recipe, or why there is none."""
    asked = get_recipe(f"{family}-{bits}-{scope}")
    recipe = asked.without_positions()
    result: dict[str, Any] = {"family": family, "bits": bits, "scope": scope, "recipe": recipe.name}
    result |= {"samples": args.samples, "seed": args.seed, "commit": commit()}
    result["without_positions"] = recipe is not asked
    try:
        check_applies(model, recipe)
    except VisqError as error:
        return result | {"does_not_apply": str(error)}
    images = open_dataset(args.calib, model.card.preprocess, split="calib").subset(args.samples, args.seed)
    network, start = copy.deepcopy(model), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        calibrate(network, recipe, images, work_dir=Path(folder) / "state", seed=args.seed)
    seconds = time.perf_counter() - start
    psnr = evaluate_restoration(network, args.hr, args.lr)
    return result | {"psnr": psnr.mean, "images": dict(psnr.psnr), "calibration_seconds": round(seconds, 1)}


def study(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    model = load_model("dvmsr", args.checkpoint)
    done = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    if done.get("checkpoint_sha256", model.card.checkpoint_sha256) != model.card.checkpoint_sha256:
        raise SystemExit(f"{args.out} holds results of another checkpoint; give another --out")
    if "fp32" not in done:
        done |= {"checkpoint_sha256": model.card.checkpoint_sha256, "calibration": "imagenette, 56 -> 48 pixels"}
        for name, found in (
            ("bicubic", bicubic(args, model.config.upscale)),
            ("fp32", evaluate_restoration(model, args.hr, args.lr)),
        ):
            done[name] = {"psnr": found.mean, "images": dict(found.psnr)}
            print(f"{name}: {found.mean:.2f} dB", flush=True)
    kept = {tuple(old[key] for key in ("family", "bits", "scope", "samples", "seed")) for old in done["rows"]}
    for bits in args.bits:
        for scope in args.scopes:
            for family in args.families:
                if (family, bits, scope, args.samples, args.seed) in kept:
                    continue
                found = row(model, family, bits, scope, args)
                done["rows"].append(found)
                print(found["recipe"], found.get("does_not_apply") or f"{found['psnr']:.2f} dB", flush=True)
                write_json(args.out, done | {"machine": machine()})
    return done


def markdown(done: dict[str, Any]) -> str:
    """PSNR in dB: a row for each recipe and scope, a column for each width. A star: without scales per position."""
    cells = {(old["family"], old["scope"], old["bits"]): old for old in done["rows"]}
    lines = ["| recipe | scope | " + " | ".join(BITS) + " |", "|---|---|" + "---:|" * len(BITS)]
    for scope in SCOPES:
        for family in FAMILIES:
            found = [cells.get((family, scope, bits)) for bits in BITS]
            if any(found):
                star = "*" if any(one and one["without_positions"] for one in found) else ""
                texts = ["" if one is None else f"{one['psnr']:.2f}" if "psnr" in one else "-" for one in found]
                lines.append(f"| {family}{star} | {scope} | " + " | ".join(texts) + " |")
    reasons = {one["family"]: one["does_not_apply"] for one in done["rows"] if "does_not_apply" in one}
    lines += ["", *(f"{family} does not apply: {reason}" for family, reason in reasons.items())]
    ends = f"FP32 {done['fp32']['psnr']:.2f} dB, bicubic interpolation {done['bicubic']['psnr']:.2f} dB"
    return "\n".join([ends, "", *lines]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--hr", type=Path, required=True, help="folder of the originals")
    parser.add_argument("--lr", type=Path, required=True, help="folder of the originals downscaled by 4")
    parser.add_argument("--calib", required=True, help="training images, a folder or tar")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--scopes", nargs="+", default=SCOPES)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="write the table of the results that are there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dvmsr.json")
    arguments = parser.parse_args()
    outcome = json.loads(arguments.out.read_text()) if arguments.table else study(arguments)
    arguments.out.with_suffix(".md").write_text(markdown(outcome))
    print(markdown(outcome))
