"""What LtSQ and TGQ are worth: to the scan alone (SQNR of its output y, one tensor quantized), and to top-1.

    python benchmarks/scan_codebooks.py [--bits 4 6 8] [--samples 64] [--images 32] [--limit N] [--no-top1]

SQNR: every scan of the model, in both directions, is quantized on inputs from `samples` calibration images and
measured on inputs from `images` other images; a cell is the mean over scans in dB. The same is done for a synthetic
scan as in S4D (A = -(1..N), delta log-uniform, B, C and u normal).
Top-1: scope full of qmamba on the test images (256 calibration images, seed 0) with one thing changed: the codebook of
Abar or Bbar, or the number of groups of h. Finished cells are kept in a .rows.jsonl file beside the results.
Writes benchmarks/results/scan_codebooks.json and .md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import machine, subject_of, write_json
from visq import ops
from visq.analysis import compare
from visq.calibrate.state_search import RecordedScan, StepRange, make_state_estimator, step_scales
from visq.data import open_dataset
from visq.integer.spec import Spec
from visq.models import load_model
from visq.models.layers import SelectiveScan
from visq.quant.discretized import make_discretized_estimator
from visq.recipes import Recipe, get_recipe
from visq.transforms.state_factors import Factors

CODEBOOKS: dict[str, tuple[str, str]] = {
    "uniform, full range": ("uniform", "minmax"),
    "uniform, clipped": ("uniform", "mse"),
    "uniform, scan": ("uniform", "scan_output"),
    "log2": ("log2", "mse"),
    "two segments": ("two_segment", "mse"),
    "two segments, scan": ("two_segment", "scan_output"),
    "power": ("power", "mse"),
    "power, scan (LtSQ)": ("power", "scan_output"),
    "k-means": ("kmeans", "mse"),
}
STATE_ESTIMATORS = ("minmax", "mse", "scan_output")


def quantize_discretized(site: str, bits: int, codebook: str, estimator: str, calibration: RecordedScan) -> Any:
    spec = Spec.model_validate({"bits": bits, "signed": site == "bbar", "codebook": codebook, "estimator": estimator})
    found = make_discretized_estimator(spec, site)
    found.observe(calibration.delta, calibration.A, calibration.B)
    return found.result(lambda quantizer: calibration.loss(**{site: quantizer.scan_argument()})).scan_argument()


def quantize_state(bits: int, groups: int, estimator: str, calibration: RecordedScan) -> ops.StateRounding:
    spec = Spec.model_validate(
        {"bits": bits, "granularity": {"kind": "step_groups", "k": groups}, "estimator": estimator}
    )
    (_, length, channels), states = calibration.u.shape, calibration.A.shape[1]
    factors = Factors(torch.ones(channels), torch.ones(length), torch.ones(states))
    state, ranges = make_state_estimator(spec, "h"), StepRange()
    ranges.observe(calibration.u, calibration.delta, calibration.A, calibration.B, factors)
    step, labels = step_scales(ranges.result(), factors, spec)
    if state.search is not None:
        step = state.search(calibration, step, labels, factors, spec, {})
    return ops.StateRounding(step, factors.channel, factors.state, spec.qmin, spec.qmax)


def sqnr(scan: RecordedScan, **quantizers: Any) -> float:
    noise = scan.loss(**quantizers)
    return 10 * math.log10(float(scan.y.square().sum(dtype=torch.double)) / max(noise, 1e-300))


def scans_of(model: nn.Module, images: Tensor) -> list[RecordedScan]:
    """The inputs and outputs of every scan in a forward pass."""
    found: list[RecordedScan] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(RecordedScan(*(tensor.contiguous() for tensor in args), output))

    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, SelectiveScan)]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


def s4d(batch: int, seed: int, length: int = 197, channels: int = 64, states: int = 16) -> RecordedScan:
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(batch, length, channels, generator=g)
    delta = torch.exp(torch.rand(batch, length, channels, generator=g) * math.log(100) + math.log(1e-3))
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    B, C = (torch.randn(batch, length, states, generator=g) for _ in range(2))
    return RecordedScan(u, delta, A, B, C, ops.selective_scan(u, delta, A, B, C))


def study(pairs: list[tuple[RecordedScan, RecordedScan]], bits: list[int], groups: list[int]) -> dict[str, Any]:
    """Tables of mean SQNR; pairs are (calibration, measured) of each scan."""

    def mean(quantize: Callable[[RecordedScan], dict[str, Any]]) -> float:
        return sum(sqnr(measured, **quantize(calibration)) for calibration, measured in pairs) / len(pairs)

    tables: dict[str, Any] = {"abar": {}, "bbar": {}, "h": {}}
    for b in bits:
        for site in ("abar", "bbar"):
            for name, (codebook, estimator) in CODEBOOKS.items():
                value = mean(lambda c, s=site, n=codebook, e=estimator, b=b: {s: quantize_discretized(s, b, n, e, c)})
                tables[site].setdefault(name, {})[str(b)] = value
        for estimator in STATE_ESTIMATORS:
            for k in groups:
                value = mean(lambda c, k=k, e=estimator, b=b: {"state": quantize_state(b, k, e, c)})
                tables["h"].setdefault(f"{estimator}, G={k}", {})[str(b)] = value
    return tables


def changed(bits: int, name: str, pattern: str, **fields: Any) -> Recipe:
    """qmamba in scope full at the same bits everywhere, with other `fields` in the rule of `pattern`."""
    recipe = get_recipe(f"qmamba-w{bits}a{bits}")
    rules = [rule.model_copy(update=fields) if pattern in rule.match else rule for rule in recipe.scope.sites]
    scope = recipe.scope.model_copy(update={"sites": tuple(rules)})
    return recipe.model_copy(update={"name": f"{recipe.name}: {name}", "scope": scope})


def variants(bits: int, length: int) -> dict[str, Recipe]:
    """What top-1 is measured for, by name; the first is qmamba as it is."""
    found = {"LtSQ, G=8": get_recipe(f"qmamba-w{bits}a{bits}")}
    for site in ("abar", "bbar"):
        for codebook, label in (("uniform", "uniform"), ("two_segment", "two segments"), ("kmeans", "k-means")):
            name = f"{site} {label}"
            found[name] = changed(bits, name, f"*.scan*.{site}", codebook=codebook)
    for groups, label in ((1, "1"), (length, "L")):
        name = f"h with G={label}"
        found[name] = changed(bits, name, "*.scan*.h", granularity={"kind": "step_groups", "k": groups})
    return found


def top1(args: argparse.Namespace, model: Any, length: int) -> dict[str, Any]:
    """{variant: {bits: row}} and the FP32 row, on the test images."""
    subject = subject_of(model, args.data)
    table: dict[str, Any] = {}
    for b in args.bits:
        for name, recipe in variants(b, length).items():
            fp32, row = compare(
                [subject], [recipe], samples=256, limit=args.limit, cache=args.out.with_suffix(".rows.jsonl")
            )
            keep = ("top1", "drop", "lost", "gained", "p_value", "n", "calibration_seconds")
            table.setdefault(name, {})[str(b)] = {key: row[key] for key in keep}
            print(f"{recipe.name}: {row['top1']:.2f} (FP32 {fp32['top1']:.2f})", flush=True)
    return table


def markdown(report: dict[str, Any], bits: list[int]) -> str:
    lines = ["# SQNR of the scan's output in dB, one tensor quantized at a time", ""]
    for source, tables in report["studies"].items():
        for site, table in tables.items():
            lines += ["", f"## {source}, {site}", "", "| | " + " | ".join(f"{b} bit" for b in bits) + " |"]
            lines += ["|---|" + "---|" * len(bits)]
            for name, cells in table.items():
                lines.append(f"| {name} | " + " | ".join(f"{cells[str(b)]:.1f}" for b in bits) + " |")
    if report.get("top1"):
        lines += ["", "# Top-1 of qmamba, scope full, with one thing changed", ""]
        lines += ["| | " + " | ".join(f"{b} bit" for b in bits) + " |", "|---|" + "---|" * len(bits)]
        for name, cells in report["top1"].items():
            lines.append(f"| {name} | " + " | ".join(f"{cells[str(b)]['top1']:.2f}" for b in bits) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_nano_fmnist")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--limit", type=int, help="test images for top-1; all by default")
    parser.add_argument("--no-top1", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scan_codebooks")
    args = parser.parse_args()
    model = load_model(args.model, args.checkpoint).eval()
    batches = []
    for split, count in (("calib", args.samples), ("test", args.images)):
        dataset = open_dataset(args.data, model.card.preprocess, split=split).subset(count, 0)
        batches.append(scans_of(model, next(dataset.batches(count))[0]))
    pairs = list(zip(*batches, strict=True))
    length = pairs[0][0].u.shape[1]
    groups = [k for k in (1, 2, 4, 8, 14, 28) if k < length] + [length]
    studies = {
        f"{args.model}, {len(pairs)} scans": study(pairs, args.bits, groups),
        "synthetic S4D": study([(s4d(4, seed), s4d(2, seed + 100)) for seed in range(2)], args.bits, [1, 4, 14, 197]),
    }
    report: dict[str, Any] = {"studies": studies, "samples": args.samples, "images": args.images, "machine": machine()}
    if not args.no_top1:
        report["top1"] = top1(args, model, length)
    write_json(args.out.with_suffix(".json"), report)
    args.out.with_suffix(".md").write_text(markdown(report, args.bits))
    print(markdown(report, args.bits))


if __name__ == "__main__":
    main()
