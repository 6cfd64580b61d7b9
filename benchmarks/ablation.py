"""Ablations in the shape of Tables I and II of arXiv 2501.16738, on the shipped model.

    python benchmarks/ablation.py [--seeds 3] [--samples 256] [--limit N] [--out benchmarks/results/ablation.json]

Table I: linears and convolutions only (weight and output of each, the paper's sites), baseline / similarity / k-scaled
    / both.
Table II: the paper's scope with every Rep x Disp, one scale of h per step and one per tensor, against no
    reparameterization.
Every cell is calibrated on `samples` training images under each seed and evaluated on the test images; finished cells
are kept in the JSON file, so that an interrupted run goes on where it stopped. Linears and convolutions are those of
Table I's `both` in every cell of Table II: all are calibrated on the FP32 stream, and only x_proj and the scan depend
on how the state is treated, so that only these are calibrated again (`--whole` repeats all, with the same result).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import machine, write_json
from visq.analysis import evaluate
from visq.calibrate import calibrate
from visq.data import open_dataset
from visq.models import load_model
from visq.quant.site import WEIGHT, named_sites, site_parameter
from visq.recipes import Bits, Family, Recipe
from visq.recipes.catalog import make_recipe
from visq.recipes.schema import Rule
from visq.transforms.reparameterize import DISPERSIONS, REPRESENTATIVES

SIMILAR: dict[str, Any] = {"name": "similarity", "score": "cosine"}
LAYER: dict[str, Any] = {"name": "similarity", "score": "cosine", "rounds": 3}
PLAIN_WEIGHTS = ["patch_embed.proj.weight", "*.in_proj.weight", "*.x_proj*.weight", "*.dt_proj*.weight", "head.weight"]
PLAIN_OUTPUTS = ["patch_embed.proj.out", "*.in_proj.out", "*.x_proj*.out", "*.dt_proj*.out", "head.out"]


def linear_rules(similarity: bool, groups: bool) -> list[dict[str, Any]]:
    """Table I: minmax everywhere; conv1d and out_proj with a similarity search, with k-scaled groups, or with both."""

    def output(kind: str) -> dict[str, Any]:
        rule: dict[str, Any] = {"estimator": SIMILAR} if similarity else {}
        return rule | ({"granularity": {"kind": kind, "k": 4, "power_of_two": True}} if groups else {})

    hard = {"match": ["*.conv1d*.weight", "*.out_proj.weight"], "bits": "weight"} | (
        {"estimator": LAYER} if similarity else {}
    )
    return [
        {"match": PLAIN_WEIGHTS, "bits": "weight"},
        {"match": PLAIN_OUTPUTS},
        hard,
        {"match": "*.conv1d*.out", **output("channel_groups")},
        {"match": "*.out_proj.out", **output("token_groups")},
    ]


def state_rules(granularity: str) -> list[dict[str, Any]]:
    return [
        {
            "match": "*.scan*.y",
            "granularity": {"kind": "token_groups", "k": 4, "power_of_two": True},
            "estimator": SIMILAR,
        },
        {"match": "*.scan*.h", "bits": "state", "granularity": granularity, "estimator": "scan_output"},
    ]


def recipe(name: str, bits: int, sites: list[dict[str, Any]], transforms: list[dict[str, Any]]) -> Recipe:
    scope = {"sites": sites, "transforms": transforms, "learners": ["bias_correction"], "search_images": 64}
    family = Family.model_validate({"name": name, "title": name, "default_scope": "paper", "scopes": {"paper": scope}})
    return make_recipe(family, Bits(weight=bits, activation=bits, state=bits), "paper")


def cells(bits: list[int]) -> dict[str, Recipe]:
    """All cells of both tables by a readable key."""
    found: dict[str, Recipe] = {}
    for b in bits:
        for name, similarity, groups in (
            ("baseline", False, False),
            ("similarity", True, False),
            ("k-scaled", False, True),
            ("both", True, True),
        ):
            found[f"I/w{b}a{b}/{name}"] = recipe(name, b, linear_rules(similarity, groups), [])
        both = linear_rules(True, True)
        for granularity in ("step", "tensor"):
            sites = both + state_rules(granularity)
            found[f"II/w{b}a{b}/{granularity}/none"] = recipe("none", b, sites, [])
            for rep in REPRESENTATIVES:
                for disp in DISPERSIONS:
                    transform = {"name": "reparameterize", "rep": rep, "disp": disp}
                    found[f"II/w{b}a{b}/{granularity}/{rep}-{disp}"] = recipe(f"{rep}-{disp}", b, sites, [transform])
    return found


def state_only(cell: Recipe, sites: list[str]) -> Recipe:
    """A cell of Table II without what it shares with Table I's `both`."""
    shared = tuple(site for site in sites if ".x_proj" not in site and ".scan" not in site)
    rules = (*cell.scope.sites, Rule(match=shared, skip=True))
    return cell.model_copy(update={"scope": cell.scope.model_copy(update={"sites": rules, "learners": ()})})


def graft(part: Any, whole: Any) -> Any:
    """A copy of `whole` with the quantizers and quantized weights of `part`."""
    model = copy.deepcopy(whole)
    target = dict(named_sites(model))
    for name, site in named_sites(part):
        if site.quantizer is not None:
            target[name].quantizer, target[name].baked = site.quantizer, site.baked
            if site.kind == WEIGHT:
                site_parameter(model, name, target[name]).data = site_parameter(part, name, site).data
    return model


def quantized(args: argparse.Namespace, cell: Recipe, seed: int) -> tuple[Any, float]:
    """(the model under a recipe, seconds)."""
    model = load_model(args.model)
    calib = open_dataset(args.data, model.card.preprocess, split="calib").subset(args.samples, seed)
    with tempfile.TemporaryDirectory() as work:
        result = calibrate(model, cell, calib, work_dir=Path(work) / "w", seed=seed)
    return model, result.seconds


def run(args: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"results": {}, "samples": args.samples}
    if args.out.exists():
        report = json.loads(args.out.read_text())
    fp32 = load_model(args.model)
    sites = [name for name, _ in named_sites(fp32)]
    test = open_dataset(args.data, fp32.card.preprocess, split="test")
    report |= {"machine": machine(), "limit": args.limit}
    report["fp32"] = evaluate(fp32, test, limit=args.limit).top1
    everything = cells(args.bits)
    for b in args.bits:
        for seed in range(args.seeds):
            whole: Any = None
            for key, cell in everything.items():
                done = report["results"].setdefault(key, {})
                if f"/w{b}a{b}/" not in key or str(seed) in done:
                    continue
                if key.startswith("I/") or args.whole:
                    model, seconds = quantized(args, cell, seed)
                else:
                    whole = whole or quantized(args, everything[f"I/w{b}a{b}/both"], seed)[0]
                    part, seconds = quantized(args, state_only(cell, sites), seed)
                    model = graft(part, whole)
                if key.endswith("/both"):
                    whole = model
                top1 = evaluate(model, test, limit=args.limit).top1
                done[str(seed)] = {"top1": top1, "calibration_seconds": round(seconds, 2)}
                print(f"{key} seed {seed}: {top1:.2f} ({seconds:.1f} s)", flush=True)
                write_json(args.out, report)
    return report


def spread(results: dict[str, dict[str, float]]) -> str:
    values = [cell["top1"] for cell in results.values()]
    if not values:
        return ""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def markdown(report: dict[str, Any], bits: list[int]) -> str:
    results, lines = report["results"], [f"FP32 top-1: {report['fp32']:.2f}", ""]
    lines += ["| method | " + " | ".join(f"W{b}A{b}" for b in bits) + " |", "|---|" + "---|" * len(bits)]
    for name in ("baseline", "similarity", "k-scaled", "both"):
        lines.append(f"| {name} | " + " | ".join(spread(results[f"I/w{b}a{b}/{name}"]) for b in bits) + " |")
    for b in bits:
        for granularity in ("step", "tensor"):
            prefix = f"II/w{b}a{b}/{granularity}"
            lines += [
                "",
                f"W{b}A{b}, one scale of h per {granularity}; "
                f"without reparameterization: {spread(results[prefix + '/none'])}",
                "",
            ]
            lines += ["| rep \\ disp | " + " | ".join(DISPERSIONS) + " |", "|---|" + "---|" * len(DISPERSIONS)]
            for rep in REPRESENTATIVES:
                lines.append(
                    f"| {rep} | " + " | ".join(spread(results[f"{prefix}/{rep}-{disp}"]) for disp in DISPERSIONS) + " |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_nano_fmnist")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--whole", action="store_true", help="calibrate every cell from the beginning")
    parser.add_argument("--out", type=Path, default=Path(os.path.dirname(__file__)) / "results" / "ablation.json")
    arguments = parser.parse_args()
    print(markdown(run(arguments), arguments.bits))
