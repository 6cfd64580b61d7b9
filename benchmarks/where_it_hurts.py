"""Which tensors cost a method its accuracy: each kind quantized alone, and what its quantizer does to it.

    python benchmarks/where_it_hurts.py [--bits w4a4] [--families minmax omse ...] [--limit 2000] [--plots docs/images]

For every family in scope full, seed 0:
alone: top-1 with the sites of one kind quantized as the method does, everything else in FP32;
sites: median SQNR, mean share of clipped values and median use of the range over the sites of a kind, when everything
    is quantized, on 64 test images (`visq diagnose`);
scans: relative error of y at every step, the root of the mean square over scans.
Finished cells of `alone` are kept in a .rows.jsonl file beside the results.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from common import machine, subject_of, write_json
from visq.analysis import compare, diagnose
from visq.models import load_model
from visq.models.family import families
from visq.pipeline import quantize
from visq.quant.site import named_sites
from visq.recipes import Recipe, get_recipe
from visq.recipes.schema import Rule

FAMILIES = ["minmax", "percentile", "smoothquant", "omse", "similarity", "kscaled", "ptq4vm-grid", "qmamba"]
#: Patterns over names of sites, first match counts.
KINDS: dict[str, tuple[str, ...]] = {
    "weights": ("*.weight", "*.a_*log"),
    "in_proj input": ("*.in_proj.in",),
    "x_proj input": ("*.x_proj*.in",),
    "dt_proj input": ("*.dt_proj*.in",),
    "out_proj input and output": ("*.out_proj.in", "*.out_proj.out"),
    "conv1d": ("*.conv1d*.in", "*.conv1d*.out"),
    "SiLU, gate": ("*.silu*.out", "*.gate.out"),
    "delta": ("*.scan*.delta",),
    "C": ("*.scan*.c",),
    "Abar": ("*.scan*.abar",),
    "Bbar": ("*.scan*.bbar",),
    "h": ("*.scan*.h",),
    "y": ("*.scan*.y",),
    "image, head input": ("patch_embed.proj.in", "head.in"),
}


def kind(site: str) -> str | None:
    return next((name for name, match in KINDS.items() if any(fnmatchcase(site, p) for p in match)), None)


def alone(recipe: Recipe, name: str, sites: list[str]) -> Recipe:
    """`recipe` with only the sites of one kind."""
    others = tuple(site for site in sites if kind(site) != name)
    scope = recipe.scope.model_copy(update={"sites": (*recipe.scope.sites, Rule(match=others, skip=True))})
    return recipe.model_copy(update={"name": f"{recipe.name}: {name} alone", "scope": scope})


def sites_by_kind(report: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in report["sites"]:
        rows.setdefault(families()["vim"].kind_of(row["name"]), []).append(row)

    def over(same: list[dict[str, Any]], key: str, average: Any) -> float | None:
        values = [row[key] for row in same if row.get(key) is not None]
        return average(values) if values else None

    return {
        name: {
            "sqnr_db": over(same, "sqnr_db", statistics.median),
            "clipped": over(same, "clipped", statistics.mean),
            "range_used": over(same, "range_used", statistics.median),
        }
        for name, same in rows.items()
    }


def along_the_scan(report: dict[str, Any]) -> list[float]:
    """Root of the mean over scans of the squared relative error of y at each step."""
    errors = [scan["y_error"] for scan in report["scans"]]
    return [statistics.mean(value**2 for value in step) ** 0.5 for step in zip(*errors, strict=True)]


def study(args: argparse.Namespace) -> dict[str, Any]:
    model = load_model(args.model)
    subject = subject_of(model, args.data, args.calib)
    sites = [name for name, _ in named_sites(model)]
    cache = args.out.with_suffix(".rows.jsonl")
    result: dict[str, Any] = {"limit": args.limit, "bits": args.bits, "families": {}, "machine": machine()}
    for family in args.families:
        recipe = get_recipe(f"{family}-{args.bits}-full")
        quantized = quantize(copy.deepcopy(model), recipe, subject.calibration.subset(args.samples, 0))
        report = diagnose(quantized.model, subject.data, fp32=load_model(args.model), images=64)
        found = {
            "stages": {row["name"]: row["sqnr_db"] for row in report["stages"]},
            "sites": sites_by_kind(report),
            "y_error": along_the_scan(report),
            "alone": {},
        }
        targeted = recipe.resolve(sites)
        for name in KINDS:
            if any(kind(site) == name for site in targeted):
                fp32, row = compare(
                    [subject], [alone(recipe, name, sites)], samples=args.samples, limit=args.limit, cache=cache
                )
                result["fp32"] = fp32["top1"]
                found["alone"][name] = {key: row[key] for key in ("top1", "drop", "p_value")}
                print(f"{family}, {name}: drop {row['drop']:.2f}", flush=True)
        result["families"][family] = found
        write_json(args.out.with_suffix(".json"), result)
    return result


def table(families: dict[str, Any], rows: list[str], cell: Any) -> list[str]:
    lines = ["| | " + " | ".join(families) + " |", "|---|" + "---|" * len(families)]
    return lines + [f"| {row} | " + " | ".join(cell(found, row) for found in families.values()) + " |" for row in rows]


def markdown(result: dict[str, Any]) -> str:
    families = result["families"]
    kinds = list(dict.fromkeys(name for found in families.values() for name in found["sites"]))
    lines = [f"Points of top-1 lost with one kind quantized alone, {result['bits']}", ""]
    lines += table(families, list(KINDS), lambda found, row: cell(found["alone"].get(row), "drop", "{:.2f}"))
    for key, title, form in (
        ("sqnr_db", "SQNR in dB", "{:.1f}"),
        ("clipped", "clipped, percent", "{:.3%}"),
        ("range_used", "use of the range", "{:.2f}"),
    ):
        lines += ["", f"Everything quantized: {title}", ""]
        lines += table(families, kinds, lambda found, row: cell(found["sites"].get(row), key, form))  # noqa: B023
    stages = list(next(iter(families.values()))["stages"])
    lines += ["", "Everything quantized: SQNR of each stage's output against FP32, dB", ""]
    lines += table(families, stages, lambda found, row: cell(found["stages"], row, "{:.1f}"))
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any] | None, key: str, form: str) -> str:
    return "" if row is None or row.get(key) is None else form.format(row[key]).rstrip("%")


def plot(result: dict[str, Any], folder: Path) -> None:
    """Error of y along the recurrence, and the points lost by kind."""
    from visq.analysis.plots import pyplot, saved

    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for family, found in result["families"].items():
        axes.plot(found["y_error"], label=family)
    axes.set(
        xlabel="step of the scan", ylabel="relative error of y", title=f"{result['bits']}, mean over scans", ylim=0
    )
    axes.legend(fontsize=7, ncol=2)
    saved(figure, folder / "error_along_the_scan.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_nano_fmnist")
    parser.add_argument("--data", default="fashion-mnist", help="the images measured on")
    parser.add_argument("--calib", help="the calibration images, where --data has none")
    parser.add_argument("--samples", type=int, default=256, help="calibration images")
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--plots", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "where_it_hurts")
    arguments = parser.parse_args()
    outcome = study(arguments)
    arguments.out.with_suffix(".md").write_text(markdown(outcome))
    print(markdown(outcome))
    if arguments.plots is not None:
        plot(outcome, arguments.plots)
