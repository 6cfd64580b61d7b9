"""`visq demo`: quantizes the embedded model in eight ways and measures each on the embedded images."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visq.cli import options
from visq.cli.output import Output, set_threads
from visq.errors import VisqError
from visq.progress import Progress

if TYPE_CHECKING:
    from visq.analysis import EngineModel
    from visq.data import Dataset

MODEL = "vim_nano_fmnist"
DATA = "fashion-mnist"
RECIPES = tuple(
    f"{family}-{bits}{scope}"
    for bits in ("w8a8", "w4a4")
    for scope in ("-linear", "")
    for family in ("minmax", "kscaled")
)
#: Test images that are simulated without --full. The engine has the simulation's bits and measures all images.
SIMULATED = 1000
#: Images of the self-check beside the calibration images.
HELD_OUT = 64
#: FP32 and the simulation are quickest on batches that stay in the second cache.
BATCH, ENGINE_BATCH = 25, 100

HEADER = ("recipe", "scope", "top-1", "drop", "bytes", "self-check", "calibration", "an image", "simulation")
#: Characters of a column; negative: aligned to the right.
WIDTHS = (20, 6, -5, -5, -9, 10, -11, -8, 18)


def demo(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Keep the artifacts there and replace those of an earlier demo."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help=f"Simulate every test image, not {SIMULATED:,} of them (slow).")
    ] = False,
    web: Annotated[
        bool,
        typer.Option(
            "--web",
            help="Write a page instead, index.html in --out, and open it: the model in a browser, FP32 and 4 bits. "
            "Needs a checkout and emscripten.",
        ),
    ] = False,
    limit: options.Limit = None,
    samples: options.Samples = 256,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    json_to: options.JsonTo = None,
) -> None:
    """Quantize the embedded model in eight ways and measure each on the integer engine and in simulation."""
    output = Output(json_to)
    if web:
        return open_page(output, out, samples, seed, threads, full or limit is not None)
    from visq import analysis, pipeline
    from visq.analysis import report
    from visq.data import open_dataset
    from visq.models import load_model

    set_threads(threads)
    start = time.perf_counter()
    model = load_model(MODEL)
    card = model.card
    test = open_dataset(DATA, card.preprocess, split="test", classes=card.classes)
    images = pipeline.draw(open_dataset(DATA, card.preprocess, split="calib"), samples, HELD_OUT, seed)
    output.kernels()
    # One bar for the whole demo; without a terminal the table's rows are the progress.
    progress = output.progress if output.progress.mode == "bar" else Progress("silent")
    room = nullcontext(out) if out is not None else tempfile.TemporaryDirectory(prefix="visq-demo-")
    with room as folder, progress.task("visq demo", total=1 + len(RECIPES)) as task:
        task.advance(0, note="FP32")
        fp32 = analysis.evaluate(model, test, batch_size=BATCH, limit=limit)
        row = analysis.evaluation_row(model, fp32, backend="fp32", size=analysis.fp32_bytes(model))
        rows = [{**row, "sites_quantized": 0, "sites_targeted": 0, "calibration_seconds": 0.0}]
        output.say(f"{MODEL}, {samples} calibration images, {fp32.n:,} test images")
        output.say("FP32 is measured in PyTorch, every other row on the integer engine\n")
        say_row(output, HEADER)
        say_row(output, ["-" * max(abs(width), len(name)) for name, width in zip(HEADER, WIDTHS, strict=True)])
        say_row(output, cells(rows[0] | {"drop": 0.0}))
        for name in RECIPES:
            task.advance(1, note=name)
            row = run_recipe(model, name, images, test, Path(folder) / name, seed, limit, full)
            rows.append(row | {"drop": fp32.top1 - row["top1"]})
            say_row(output, cells(rows[-1]))
        task.advance(1)
    for row in rows:
        row |= {"fp32_top1": fp32.top1, "drop": fp32.top1 - row["top1"]}
    output.say(f"\n{time.perf_counter() - start:.0f} s in all. Engine and simulation gave the same results.")
    kept = "--out DIR keeps the artifacts." if out is None else f"The artifacts are in {out}."
    look = "" if out is None else f" Look into one with `visq inspect {out / RECIPES[3]}`."
    output.say(kept + look)
    output.say("Your own network and images: docs/quickstart.md")
    output.emit(report.to_json(rows))


def open_page(output: Output, out: Path | None, samples: int, seed: int, threads: int | None, measures: bool) -> None:
    """Writes the page of `--web` and opens it where there is a browser."""
    import webbrowser

    from visq.web import PAGE, write_demo

    if measures:
        raise VisqError("--web writes a page and measures nothing; leave --full and --limit out")
    set_threads(threads)
    page = write_demo(PAGE if out is None else out / "index.html", samples=samples, seed=seed)
    where = page.path.absolute()
    opened = webbrowser.open(where.as_uri())
    output.say(f"{where}: {page.bytes:,} bytes, {'opened' if opened else 'open it in a browser'}")
    output.emit({"file": str(where), "bytes": page.bytes, "network_bytes": list(page.networks), "opened": opened})


def run_recipe(
    model: Any,
    name: str,
    images: tuple[Dataset, Dataset | None],
    test: Dataset,
    folder: Path,
    seed: int,
    limit: int | None,
    full: bool,
) -> dict[str, Any]:
    """Quantizes a copy of the model, saves it in `folder` and measures what was saved.

    The integer engine measures all test images. The network that was quantized is then simulated, on `SIMULATED` of
    them or, with `full`, on all. Without the C++ extension the saved network's own simulation takes the engine's place.

    Arguments:
        images: those to calibrate on, and those that the self-check holds out.
    Raises:
        VisqError: the engine's results are not those of the simulation: all logits, or with `full` all predictions.
    """
    from visq import analysis, pipeline
    from visq.analysis.evaluate import limited
    from visq.artifact import artifact_bytes
    from visq.recipes import get_recipe

    calibration, held_out = images
    result = pipeline.quantize(
        copy.deepcopy(model),
        get_recipe(name),
        calibration,
        seed=seed,
        out=folder,
        overwrite=True,
        batch_size=32,
        held_out=held_out,
    )
    loaded = analysis.EngineModel(folder)
    on_engine = loaded.engine.kernel != "oracle"
    subject = loaded if on_engine else loaded.simulation
    batch = ENGINE_BATCH if on_engine else BATCH
    again = analysis.evaluate(subject, test, batch_size=batch, limit=limit)
    if full:
        found = analysis.evaluate(result.model, test, batch_size=BATCH, limit=limit)
        same, simulated, seconds = again.predictions.tolist() == found.predictions.tolist(), found.n, found.seconds
    else:
        found = again
        shown = limited(limited(test, limit), SIMULATED)
        same, simulated, seconds = same_logits(result.model, subject, shown)
    if not same:
        raise VisqError(f"{folder}: the artifact loaded again does not compute what was simulated before it was saved")
    quantized, targeted = analysis.totals(loaded.simulation.artifact.coverage)
    backend = "sim" if full or not on_engine else "int"
    return {
        **analysis.evaluation_row(loaded, found, backend=backend, size=artifact_bytes(folder)),
        "sites_quantized": quantized,
        "sites_targeted": targeted,
        "calibration_seconds": result.calibration.seconds,
        "verdict": "not made" if result.check is None else result.check.verdict,
        "loaded_top1": again.top1,
        "loaded_kernel": f"the engine, {loaded.engine.kernel}" if on_engine else "its simulation",
        "simulated": simulated,
        "compared": "top-1" if full else "bits",
        "simulation_ms": 1e3 * seconds / simulated,
        "loaded_ms": 1e3 / again.images_per_second,
    }


def same_logits(simulation: Any, loaded: EngineModel | Any, images: Dataset) -> tuple[bool, int, float]:
    """(whether both give the same bits for every logit, number of images, seconds of the simulation)."""
    import torch

    same, seconds = True, 0.0
    with torch.no_grad():
        for batch, _ in images.batches(BATCH):
            start = time.perf_counter()
            logits = simulation(batch)
            seconds += time.perf_counter() - start
            same = same and torch.equal(logits, loaded(batch))
    return same, len(images), seconds


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a row of the table, as `HEADER` names them."""
    measured = (row["recipe"], row["scope"], f"{row['top1']:.2f}", f"{row['drop']:.2f}", f"{row['bytes']:,}")
    if "loaded_ms" not in row:
        return (*measured, "", "", f"{1e3 / row['images_per_second']:.2f} ms", "")
    agreement = f"same {row['compared']} on {row['simulated']:,}"
    return (*measured, row["verdict"], f"{row['calibration_seconds']:.1f} s", f"{row['loaded_ms']:.2f} ms", agreement)


def say_row(output: Output, row: Sequence[str]) -> None:
    padded = [cell.rjust(-width) if width < 0 else cell.ljust(width) for cell, width in zip(row, WIDTHS, strict=True)]
    output.say("  ".join(padded).rstrip())
