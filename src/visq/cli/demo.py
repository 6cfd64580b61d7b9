"""`visq demo`: the embedded model and images through FP32, a baseline and k-scaled, at 8 and 4 bits."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from visq.cli import options
from visq.cli.output import Output, set_threads
from visq.errors import VisqError

MODEL = "vim_nano_fmnist"
DATA = "fashion-mnist"
RECIPES = tuple(
    f"{family}-{bits}{scope}"
    for bits in ("w8a8", "w4a4")
    for scope in ("-linear", "")
    for family in ("minmax", "kscaled")
)


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Where the artifacts go; those of an earlier demo are replaced.")
    ] = Path("visq-demo"),
    limit: options.Limit = None,
    samples: options.Samples = 256,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    json_to: options.JsonTo = None,
) -> None:
    """Quantize the embedded model in eight ways, measure, save, and measure the artifact on the integer engine."""
    output = Output(json_to)
    from visq import analysis
    from visq.analysis import report
    from visq.data import open_dataset
    from visq.models import load_model

    set_threads(threads)
    start = time.perf_counter()
    model = load_model(MODEL)
    card = model.card
    test = open_dataset(DATA, card.preprocess, split="test", classes=card.classes)
    calibration = open_dataset(DATA, card.preprocess, split="calib").subset(samples, seed)
    output.kernels()
    fp32 = analysis.evaluate(model, test, batch_size=100, limit=limit, progress=output.progress, name="fp32")
    row = analysis.evaluation_row(model, fp32, backend="fp32", size=analysis.fp32_bytes(model))
    rows = [{**row, "sites_quantized": 0, "sites_targeted": 0, "calibration_seconds": 0.0}]
    output.say(f"{MODEL} in FP32: top-1 {fp32.top1:.2f} % on {fp32.n} test images")
    for name in RECIPES:
        row = run_recipe(output, model, name, calibration, test, out / name, seed, limit)
        rows.append(row)
        speed = f"{row['simulation_ms']:.2f} ms an image simulated, {row['loaded_ms']:.2f} on {row['loaded_kernel']}"
        drop = fp32.top1 - row["top1"]
        output.say(f"{name}: top-1 {row['top1']:.2f} %, drop {drop:.2f}; its artifact: same predictions ({speed})")
    for row in rows:
        row |= {"fp32_top1": fp32.top1, "drop": fp32.top1 - row["top1"]}
    print_table(output, rows)
    output.say(f"{time.perf_counter() - start:.0f} s in all; the artifacts are in {out}.")
    output.say(
        f"Look into one with `visq inspect {out / RECIPES[3]}`, or measure it again with `visq eval` and --data {DATA}."
    )
    output.say(
        "Quantize your own Vim with `visq quantize --model vim --checkpoint FILE --recipe kscaled-w8a8 --calib IMAGES "
        "--out DIR`."
    )
    output.emit(report.to_json(rows))


def run_recipe(
    output: Output, model: Any, name: str, calibration: Any, test: Any, folder: Path, seed: int, limit: int | None
) -> dict[str, Any]:
    """Quantize, measure the simulation, load the artifact and measure it on the engine; the row of the first
    measurement. VisqError when predictions differ.

    Without the C++ extension the engine is slow NumPy, and the artifact's simulation is measured instead.
    """
    from visq import analysis, pipeline
    from visq.artifact import artifact_bytes
    from visq.recipes import get_recipe

    result = pipeline.quantize(
        copy.deepcopy(model),
        get_recipe(name),
        calibration,
        seed=seed,
        out=folder,
        overwrite=True,
        batch_size=32,
        progress=output.progress,
    )
    measure: dict[str, Any] = {"batch_size": 100, "limit": limit, "progress": output.progress}
    found = analysis.evaluate(result.model, test, name=name, **measure)
    loaded = analysis.EngineModel(folder)
    on_engine = loaded.engine.kernel != "oracle"
    subject = loaded if on_engine else loaded.simulation
    again = analysis.evaluate(subject, test, name=f"{name} loaded", **measure)
    if again.predictions.tolist() != found.predictions.tolist():
        raise VisqError(f"{folder}: the artifact predicts otherwise ({again.top1:.2f} %, {found.top1:.2f} % before)")
    quantized, targeted = analysis.totals(loaded.simulation.artifact.coverage)
    return {
        **analysis.evaluation_row(loaded, found, backend="sim", size=artifact_bytes(folder)),
        "sites_quantized": quantized,
        "sites_targeted": targeted,
        "calibration_seconds": result.calibration.seconds,
        "loaded_top1": again.top1,
        "loaded_kernel": f"the engine, {loaded.engine.kernel}" if on_engine else "its simulation",
        "simulation_ms": 1e3 / found.images_per_second,
        "loaded_ms": 1e3 / again.images_per_second,
    }


def print_table(output: Output, rows: list[dict[str, Any]]) -> None:
    header = ("recipe", "scope", "top-1", "drop", "bytes", "sites quantized", "calibration s", "artifact")
    lines = [
        (
            row["recipe"],
            row["scope"],
            f"{row['top1']:.2f}",
            f"{row['drop']:.2f}",
            f"{row['bytes']:,}",
            f"{row['sites_quantized']}/{row['sites_targeted']}",
            f"{row['calibration_seconds']:.1f}",
            "same top-1" if "loaded_top1" in row else "",
        )
        for row in rows
    ]
    output.say()
    output.table(header, lines)
