"""`visq diagnose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from visq.cli import options
from visq.cli.evaluate import place
from visq.cli.output import Output, check_folder, set_threads
from visq.errors import VisqError
from visq.files import read_text


def diagnose(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact.")],
    data: options.Data,
    fp32: Annotated[
        str | None, typer.Option("--fp32", help="The model it was made of; by default the packaged one of its name.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Look at so many images, drawn from all.")] = 32,
    plots: Annotated[Path | None, typer.Option("--plots", help="Folder for pictures (needs matplotlib).")] = None,
    compared: Annotated[
        Path | None, typer.Option("--compare", help="JSON of `visq compare`: also plot accuracy against bits.")
    ] = None,
    json_to: options.JsonTo = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    batch: options.Batch = 4,
    checkpoint: options.Checkpoint = None,
    ema: options.Ema = False,
    any_fp32: Annotated[
        bool, typer.Option("--any-fp32", help="Compare with an FP32 model of other weights than the artifact's.")
    ] = False,
) -> None:
    """Show where an artifact loses: SQNR, clipping and range of every site, and the error along the recurrence."""
    output = Output(json_to)
    from visq import analysis
    from visq.analysis import plots as pictures
    from visq.artifact import load
    from visq.data import open_dataset
    from visq.device import resolve_device

    set_threads(threads)
    where = resolve_device(device)
    if compared is not None and plots is None:
        raise VisqError("--compare is for plots; say where with --plots")
    rows = None if compared is None else read_rows(compared)
    if plots is not None:
        check_folder("--plots", plots)
        pictures.pyplot()
    model = load(target)
    original = open_original(model, fp32, checkpoint, ema, any_fp32, output)
    dataset = open_dataset(data, model.card.preprocess, split="test", classes=model.card.classes)
    for network in filter(None, (model, original)):
        place(output, network, where)
    report = analysis.diagnose(model, dataset, fp32=original, images=limit, batch_size=batch, any_fp32=any_fp32)
    print_report(output, report)
    if plots is not None:
        written = pictures.plot_diagnostics(report, plots)
        if rows is not None:
            written.append(pictures.plot_accuracy(rows, plots / "accuracy_against_bits.png"))
        output.say(f"pictures: {', '.join(map(str, written))}")
    output.emit(report)


def open_original(
    model: Any, name: str | None, checkpoint: Path | None, ema: bool, any_fp32: bool, output: Output
) -> Any:
    """Returns the FP32 model at the artifact's image size, or None with a remark where nobody asked for one and the
    packaged one of that name is another.

    Raises VisqError when the one asked for does not load or has other weights than the artifact was made of.
    """
    from visq.analysis.diagnostics import check_origin
    from visq.models import load_model

    try:
        asked = name or model.artifact.provenance.model
        original = load_model(asked, checkpoint, ema=ema)
        sizes = {key: getattr(model.config, key) for key in ("image_size",) if hasattr(model.config, key)}
        if sizes and sizes != {key: getattr(original.config, key, None) for key in sizes}:
            original = load_model(asked, checkpoint, ema=ema, geometry=sizes)
        if not any_fp32:
            check_origin(model, original)
        return original
    except VisqError as error:
        if name is not None or checkpoint is not None:
            raise
        output.say(f"no errors against FP32: {error}")
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a `visq compare` report."""
    try:
        rows: list[dict[str, Any]] = json.loads(read_text(path))["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VisqError(f"{path} is not a report of `visq compare --json`: {error}") from error
    return rows


def print_report(output: Output, report: dict[str, Any], worst: int = 15) -> None:
    """Prints the worst sites, and the worst step of every recurrence. Sites with NaN or infinity are the worst."""
    rows = sorted(report["sites"], key=badness)[:worst]
    output.say(f"{report['images']} images; the {len(rows)} of {len(report['sites'])} sites that lose most:")
    lines = [
        (
            row["name"],
            str(row["bits"]),
            "NaN" if row["nonfinite"] else number(row["sqnr_db"], 1),
            share(row["clipped"]),
            share(row["range_used"]),
        )
        for row in rows
    ]
    output.table(("site", "bits", "SQNR dB", "clipped %", "range used %"), lines)
    broken = sum(bool(row["nonfinite"]) for row in report["sites"])
    if broken:
        output.say(f"{broken} sites have values that are NaN or infinite")
    if report["scans"]:
        output.say("error against FP32 along the recurrence (last step, worst step):")
        lines = [
            (row["name"], *(last_and_worst(row[key]) for key in ("h_error", "y_error"))) for row in report["scans"]
        ]
        output.table(("scan", "h", "y"), lines)


def badness(row: dict[str, Any]) -> tuple[int, float]:
    """Sorts sites: NaN or infinity first, then by SQNR, those without an error last."""
    if row["nonfinite"]:
        return 0, -row["nonfinite"]
    return (2, 0.0) if row["sqnr_db"] is None else (1, row["sqnr_db"])


def last_and_worst(errors: list[float | None]) -> str:
    """Returns the error at the last step and the largest one; a step without a finite error is NaN and the worst."""
    worst = None if None in errors else max(error for error in errors if error is not None)
    return " ".join("NaN" if error is None else f"{error:.3f}" for error in (errors[-1], worst))


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3f}"
