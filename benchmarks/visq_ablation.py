"""The recipe `visq` with one of its choices undone at a time: what each is worth.

    python benchmarks/visq_ablation.py --model vim_micro_imagenette --calib train-0.tar --data train-1.tar
        [--bits w6a6 w4a4] [--samples 128] [--limit 500]

Choices are made on training images: give those as --data. Finished cells are kept in a .rows.jsonl file beside the
results, benchmarks/results/visq_ablation_MODEL.json and .md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import machine, subject_of, write_json
from visq.analysis import compare
from visq.integer.spec import Named
from visq.models import load_model
from visq.recipes import Recipe, get_recipe
from visq.recipes.schema import Rule, Scope


def rules(*own: dict[str, Any]) -> dict[str, Any]:
    """Rules after visq's, which they override."""
    return {"sites": tuple(Rule.model_validate(rule) for rule in own)}


def state(*transforms: dict[str, Any]) -> dict[str, Any]:
    """Other factors of h in place of visq's."""
    return {"factors": tuple(Named(**transform) for transform in transforms)}


MSE: dict[str, Any] = {"estimator": "mse"}
#: What is undone, and what stands there instead.
VARIANTS: dict[str, dict[str, Any]] = {
    "visq": {},
    "linears of omse (no smoothing, one scale)": rules(
        {"match": "@linears.weight", "bits": "weight", "granularity": "channel", **MSE}, {"match": "@linears.in", **MSE}
    )
    | {"smooth": False},
    "Bbar: one scale": rules({"match": "@scans.bbar", **MSE}),
    "C: one scale, no zero point": rules({"match": "@scans.c", **MSE}),
    "delta: one scale": rules({"match": "@scans.delta", "signed": False, **MSE}),
    "SiLU, gate, convolutions: one scale, no zero point": rules(
        {"match": ["@depthwise.in", "@depthwise.out", "@activations.out"], **MSE}
    ),
    "SiLU, gate, convolutions: no zero point": rules(
        {"match": ["@depthwise.in", "@depthwise.out", "@activations.out"], "granularity": "channel", **MSE}
    ),
    "y, output of out_proj: one scale, no zero point": rules({"match": ["*.out_proj.out", "@scans.y"], **MSE}),
    "h: no factors": state(),
    "h: all of r_D": state({"name": "even_state", "share": 1.0}),
    "h: none of r_D": state({"name": "even_state", "share": 0.0}),
    "h: factors of k-scaled": state({"name": "reparameterize"}),
    "h: greedy search on y": rules(
        {"match": "@scans.h", "bits": "state", "granularity": "step", "estimator": "scan_output"}
    ),
    "h: one scale for all steps": rules({"match": "@scans.h", "bits": "state", **MSE}),
}


def variant(name: str, bits: str) -> Recipe:
    base, change = get_recipe(f"visq-{bits}"), VARIANTS[name]
    factors, smooth = base.scope.transforms
    transforms = (*change.get("factors", (factors,)), *((smooth,) if change.get("smooth", True) else ()))
    scope = Scope(transforms=transforms, sites=base.scope.sites + change.get("sites", ()), learners=base.scope.learners)
    return base.model_copy(update={"name": f"{base.name}: {name}", "scope": scope})


def study(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    subject = subject_of(load_model(args.model), args.data, args.calib)
    result: dict[str, Any] = {"model": args.model, "n": args.limit, "samples": args.samples, "seed": 0, "top1": {}}
    for name in VARIANTS:
        found = result["top1"][name] = {}
        for bits in args.bits:
            recipes = [variant(name, bits)]
            cache = out.with_suffix(".rows.jsonl")
            fp32, row = compare([subject], recipes, samples=args.samples, limit=args.limit, cache=cache)
            result["fp32"], found[bits] = fp32["top1"], row["top1"]
            print(f"{row['recipe']}: {row['top1']:.2f}", flush=True)
        write_json(out.with_suffix(".json"), result | {"machine": machine()})
    return result


def markdown(result: dict[str, Any], bits: list[str]) -> str:
    lines = [f"{result['model']}, FP32 {result['fp32']:.2f} on {result['n']} training images", ""]
    lines += ["| | " + " | ".join(bits) + " |", "|---|" + "---|" * len(bits)]
    lines += [
        f"| {name} | " + " | ".join(f"{found[width]:.1f}" for width in bits) + " |"
        for name, found in result["top1"].items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_micro_imagenette")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--bits", nargs="+", default=["w6a6", "w4a4"])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--limit", type=int, default=500)
    arguments = parser.parse_args()
    path = Path(__file__).parent / "results" / f"visq_ablation_{arguments.model}"
    text = markdown(study(arguments, path), arguments.bits)
    path.with_suffix(".md").write_text(text)
    print(text)
