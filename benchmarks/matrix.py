"""Every method at all bits, scopes and seeds on one model: `visq compare`, most telling cells first.

    OMP_NUM_THREADS=1 python benchmarks/matrix.py work          # one worker; start one for each core
    python benchmarks/matrix.py report                          # benchmarks/results/matrix.json and .md

    python benchmarks/matrix.py work --model vim_micro192_imagenette --data val.tar --calib train-0.tar --samples 128
        --seeds 0 --families minmax kscaled qmamba ptq4vm-grid ptq4vm visq visq-learned
        --out benchmarks/results/imagenette_vim_micro192_imagenette

A cell is one recipe and one calibration seed: training images calibrate, all test images measure. Finished cells are
kept in OUT.rows.jsonl; workers take cells from one list, so any number of them may run, be killed and be started again.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from common import machine, subject_of, write_json
from visq.analysis import compare, mcnemar
from visq.models import load_model
from visq.recipes import get_recipe
from visq.recipes.catalog import packaged_methods

FAMILIES = ["minmax", "minmax-channel", "smoothquant", "percentile", "omse", "similarity", "ptq4vit", "gptq"]
FAMILIES += ["adaround", "quarot", "mambaquant", "kscaled", "ptq4vm-grid", "ptq4vm", "qmamba", "visq", "visq-rotated"]
FAMILIES += ["visq-learned"]
#: In the order of their worth: 4 bits separate the methods, 8 bits are what people deploy.
COLUMNS = (
    *(("w4a4", "full"), ("w8a8", "full"), ("w4a4", "linear"), ("w6a6", "full"), ("w4a8", "full"), ("w8a8", "linear")),
    *(("w4a4h8", "full"), ("w6a6", "linear"), ("w4a8", "linear"), ("w6a6h8", "full")),
    *((bits, "fused") for bits in ("w4a4", "w8a8", "w6a6", "w4a8", "w4a4h8", "w6a6h8")),
)
SCOPES = ("linear", "full", "fused")
BITS = ("w8a8", "w6a6", "w4a8", "w4a4", "w6a6h8", "w4a4h8")
#: In scope linear the second of a pair is the same recipe and is not measured again.
SAME_LINEARS = {"qmamba": "omse", "visq": "ptq4vm-grid"}
Cell = dict[str, Any]


def recipe_name(family: str, bits: str, scope: str) -> str:
    """The recipe's own name, without the scope where it is the default one."""
    return get_recipe(f"{family}-{bits}-{scope}").name


def plan(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """(recipe, seed), most telling first: every column under the first seed, then under the next."""
    for seed in args.seeds:
        for bits, scope in COLUMNS:
            for family in args.families:
                repeated = scope == "linear" and SAME_LINEARS.get(family) in args.families
                there = scope in packaged_methods()[family].scopes and not repeated
                if there and scope in args.scopes and bits in args.bits:
                    yield recipe_name(family, bits, scope), seed


def claim(folder: Path, name: str) -> IO[str] | None:
    """An exclusive claim on a cell, which ends with the file or with the process; None when another worker has it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / name).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def work(args: argparse.Namespace) -> None:
    model = load_model(args.model)
    card = model.card
    subject = subject_of(model, args.data, args.calib)
    cache = args.out.with_suffix(".rows.jsonl")
    claims = Path(tempfile.gettempdir()) / f"visq-matrix-{(card.checkpoint_sha256 or '')[:12]}"
    for name, seed in plan(args):
        if time.strftime("%H:%M") >= args.until or (name, seed) in finished(cache, card.checkpoint_sha256):
            continue
        with claim(claims, f"{name}.{seed}") or open("/dev/null") as held:
            if held.name == "/dev/null" or (name, seed) in finished(cache, card.checkpoint_sha256):
                continue
            start = time.perf_counter()
            options = {"samples": args.samples, "seeds": (seed,), "backend": args.backend, "cache": cache}
            options["limit"] = args.limit
            row = compare([subject], [get_recipe(name)], **options)[1]
            seconds = time.perf_counter() - start
            print(f"{name} seed {seed}: {row['top1']:.2f}, drop {row['drop']:.2f} ({seconds:.0f} s)", flush=True)


def read(cache: Path) -> list[Cell]:
    """The rows of the cache, each with `correct` [n] bool."""
    cells = []
    for line in cache.read_text().splitlines() if cache.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a line that was cut short by a kill
        bits = np.frombuffer(base64.b64decode(entry["correct"]), np.uint8)
        cells.append({**entry["row"], "correct": np.unpackbits(bits, count=entry["row"]["n"]).astype(bool)})
    return cells


def finished(cache: Path, checkpoint: str | None) -> set[tuple[str, int]]:
    return {(cell["recipe"], cell["seed"]) for cell in read(cache) if cell["checkpoint_sha256"] == checkpoint}


def report(args: argparse.Namespace) -> None:
    card = load_model(args.model).card
    cells = [c for c in read(args.out.with_suffix(".rows.jsonl")) if c["checkpoint_sha256"] == card.checkpoint_sha256]
    fp32 = next(cell for cell in cells if cell["recipe"] == "fp32")
    found = {(cell["recipe"], cell["seed"]): cell for cell in cells}
    summary: Cell = {}
    for bits, scope in COLUMNS:
        table: Cell = {}
        for family in args.families:
            if scope not in packaged_methods()[family].scopes:
                continue
            name = recipe_name(family, bits, scope)
            seeds = [found[name, seed] for seed in (0, 1, 2) if (name, seed) in found]
            if seeds:
                table[family] = summarize(seeds, fp32["correct"])
        if table:
            compare_with_best(table, {f: found.get((recipe_name(f, bits, scope), 0)) for f in table})
            summary[f"{bits} {scope}"] = table
    keep = (
        "recipe",
        "scope",
        "seed",
        "backend",
        "top1",
        "bytes",
        "calibration_seconds",
        "peak_rss_bytes",
        "sites_quantized",
    )
    result = {
        "fp32_top1": fp32["top1"],
        "n": fp32["n"],
        "samples": args.samples,
        "threads": fp32["threads"],
        "backends": sorted({cell["backend"] for cell in cells} - {"fp32"}),
        "checkpoint_sha256": card.checkpoint_sha256,
        "machine": machine(),
        "summary": summary,
        "rows": [{key: cell[key] for key in keep} for cell in cells],
    }
    write_json(args.out.with_suffix(".json"), result)
    args.out.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


def summarize(cells: list[Cell], reference: NDArray[np.bool_]) -> Cell:
    """Mean and spread over seeds; the paired counts are those of the first seed."""
    tops = [cell["top1"] for cell in cells]
    paired = mcnemar(reference, cells[0]["correct"])
    return {
        "top1": statistics.mean(tops),
        "spread": statistics.stdev(tops) if len(tops) > 1 else None,
        "seeds": len(tops),
        # Of one evaluation on n images.
        "standard_error": 100 * math.sqrt(tops[0] / 100 * (1 - tops[0] / 100) / len(reference)),
        "drop": 100 * float(reference.mean()) - statistics.mean(tops),
        "lost": paired.lost,
        "gained": paired.gained,
        "p_value": paired.p_value,
        "sites": cells[0]["sites_quantized"],
        "targeted": cells[0]["sites_targeted"],
        "bytes": cells[0]["bytes"],
        "calibration_seconds": statistics.median(cell["calibration_seconds"] for cell in cells),
        "peak_rss_mib": round(max(cell["peak_rss_bytes"] for cell in cells) / 2**20),
    }


def compare_with_best(table: Cell, first_seed: dict[str, Cell | None]) -> None:
    """Adds `p_best`: McNemar's test of each method against the best one of the table, both at seed 0."""
    there = {family: cell for family, cell in first_seed.items() if cell is not None}
    if not there:
        return
    best = max(there, key=lambda family: there[family]["top1"])
    for family, cell in there.items():
        table[family]["p_best"] = mcnemar(there[best]["correct"], cell["correct"]).p_value if family != best else None


def markdown(result: Cell) -> str:
    lines = [f"FP32 {result['fp32_top1']:.2f} on {result['n']} images; quantized: {', '.join(result['backends'])}"]
    for scope in SCOPES:
        if any(title.endswith(f" {scope}") for title in result["summary"]):
            lines += ["", f"## Scope {scope}", "", *overview(result["summary"], scope)]
    for title, table in result["summary"].items():
        lines += ["", f"## {title}", ""]
        lines += ["| recipe | top-1 | drop | p, FP32 | p, best | sites | bytes | calibration s |", "|---|" + "---|" * 7]
        for family, row in sorted(table.items(), key=lambda item: -item[1]["top1"]):
            best = "best" if row.get("p_best") is None else p_value(row["p_best"])
            lines.append(
                f"| {family} | {top1(row)} | {row['drop']:.2f} | {p_value(row['p_value'])} | {best} "
                f"| {row['sites']}/{row['targeted']} | {row['bytes']:,} | {row['calibration_seconds']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def overview(summary: Cell, scope: str) -> list[str]:
    """Methods by bits; the best of a column is bold."""
    columns = {bits: summary[f"{bits} {scope}"] for bits in BITS if f"{bits} {scope}" in summary}
    best = {bits: max(row["top1"] for row in table.values()) for bits, table in columns.items()}
    lines = ["| recipe | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for family in (family for family in FAMILIES if any(family in table for table in columns.values())):
        cells = []
        for bits, table in columns.items():
            row = table.get(family)
            text = "" if row is None else top1(row)
            cells.append(f"**{text}**" if row is not None and row["top1"] == best[bits] else text)
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return lines


def top1(row: Cell) -> str:
    """Mean ± standard deviation over seeds; the mere value of a single seed."""
    return f"{row['top1']:.2f}" if row["spread"] is None else f"{row['top1']:.2f} ± {row['spread']:.2f}"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("work", "report"))
    parser.add_argument("--model", default="vim_nano_fmnist")
    parser.add_argument("--data", default="fashion-mnist", help="the test images")
    parser.add_argument("--calib", help="the calibration images, where --data has none")
    parser.add_argument("--samples", type=int, default=256, help="calibration images")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--scopes", nargs="+", default=list(SCOPES))
    parser.add_argument("--backend", default="int", help="what is measured: int, the engine, or sim")
    parser.add_argument("--limit", type=int, help="test images, spread over all; one OUT holds rows of one limit")
    parser.add_argument("--until", default="24:00", help="no new cell after this time of the day (HH:MM)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "matrix")
    arguments = parser.parse_args()
    {"work": work, "report": report}[arguments.do](arguments)
