"""`visq diagnose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from visq.cli import options
from visq.cli.output import Output, set_threads
from visq.errors import VisqError


def diagnose(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact.")],
    data: options.Data,
    fp32: Annotated[
        str | None, typer.Option("--fp32", help="The model it was made of; by default the packaged one of its name.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Images to look at.")] = 32,
    plots: Annotated[Path | None, typer.Option("--plots", help="Folder for pictures (needs matplotlib).")] = None,
    compared: Annotated[
        Path | None, typer.Option("--compare", help="JSON of `visq compare`: also plot accuracy against bits.")
    ] = None,
    json_to: options.JsonTo = None,
    threads: options.Threads = None,
    batch: options.Batch = 4,
    checkpoint: options.Checkpoint = None,
    ema: options.Ema = False,
) -> None:
    """Show where an artifact loses: SQNR, clipping and range of every site, and the error along the recurrence."""
    output = Output(json_to)
    from visq import analysis
    from visq.analysis import plots as pictures
    from visq.artifact import load
    from visq.data import open_dataset

    set_threads(threads)
    if compared is not None and plots is None:
        raise VisqError("--compare is for plots; say where with --plots")
    rows = None if compared is None else read_rows(compared)
    if plots is not None:
        pictures.pyplot()
    model = load(target)
    original = open_original(fp32 or model.artifact.provenance.model, fp32 is not None, checkpoint, ema, output)
    dataset = open_dataset(data, model.card.preprocess, split="test", classes=model.card.classes)
    report = analysis.diagnose(model, dataset, fp32=original, images=limit, batch_size=batch)
    print_report(output, report)
    if plots is not None:
        written = pictures.plot_diagnostics(report, plots)
        if rows is not None:
            written.append(pictures.plot_accuracy(rows, plots / "accuracy_against_bits.png"))
        output.say(f"pictures: {', '.join(map(str, written))}")
    output.emit(report)


def open_original(name: str, asked: bool, checkpoint: Path | None, ema: bool, output: Output) -> Any:
    """The FP32 model, or None with a remark where nobody asked for one and there is no packaged one."""
    from visq.models import load_model

    try:
        return load_model(name, checkpoint, ema=ema)
    except VisqError as error:
        if asked or checkpoint is not None:
            raise
        output.say(f"no errors against FP32: {error}")
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `visq compare` report."""
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VisqError(f"{path} is not a report of `visq compare --json`: {error}") from error
    return rows


def print_report(output: Output, report: dict[str, Any], worst: int = 15) -> None:
    """The worst sites, and the worst step of every recurrence."""
    rows = sorted(report["sites"], key=lambda row: (row["sqnr_db"] is None, row["sqnr_db"] or 0.0))[:worst]
    output.say(f"{report['images']} images; the {len(rows)} of {len(report['sites'])} sites that lose most:")
    lines = [
        (row["name"], str(row["bits"]), number(row["sqnr_db"], 1), share(row["clipped"]), share(row["range_used"]))
        for row in rows
    ]
    output.table(("site", "bits", "SQNR dB", "clipped %", "range used %"), lines)
    if report["scans"]:
        output.say("error against FP32 along the recurrence (last step, worst step):")
        lines = [
            (row["name"], *(f"{row[key][-1]:.3f} {max(row[key]):.3f}" for key in ("h_error", "y_error")))
            for row in report["scans"]
        ]
        output.table(("scan", "h", "y"), lines)


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3f}"
