"""`visq reproduce`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from visq.cli import options
from visq.cli.output import Output, check_folder, set_threads
from visq.cli.understood import say_understood
from visq.files import write_text


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="kscaled-table1, kscaled-table2, kscaled-table3, ptq4vm or qmamba (docs/reproduce.md).",
        ),
    ],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="The network: .safetensors, or an official .pth.")],
    calib: Annotated[str, typer.Option("--calib", help="Calibration images: a folder or a tar.")],
    data: options.Data,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results; reproduce/<TABLE> by default.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The checkpoint's family, where it is not the table's: vim, vmamba.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Calibration images; by default as many as in the paper.")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Calibration seeds with commas between them.")] = "0",
    limit: options.Limit = None,
    json_to: options.JsonTo = None,
    strict: options.Strict = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    batch: options.Batch = 32,
    ema: options.Ema = False,
    image_size: options.ImageSize = None,
    stride: options.Stride = None,
    resize: options.Resize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    interpolation: options.Interpolation = None,
    classes: options.Classes = None,
) -> None:
    """Run the settings of a paper's table on your checkpoint and images, beside the published numbers.

    Finished rows are kept in the folder, so that the same command goes on after an interruption.
    """
    output = Output(json_to)
    from visq.analysis import Subject
    from visq.data import open_dataset
    from visq.device import described, resolve_device
    from visq.reproduce import get_table, report
    from visq.reproduce import reproduce as run

    set_threads(threads)
    where = resolve_device(device)
    table = get_table(name)
    numbers = options.integers("--seeds", seeds)
    folder = out or Path("reproduce") / table.name
    check_folder("--out", folder)
    given = options.ModelOptions(checkpoint, ema, image_size, stride, resize, mean, std, interpolation, classes)
    network = given.load(model or table.model)
    card = network.card
    say_understood(output, card)
    test = open_dataset(data, card.preprocess, split="test", classes=card.classes, strict=strict)
    calibration = open_dataset(calib, card.preprocess, split="calib", strict=strict)
    output.say(f"{table.title} ({table.source})")
    output.kernels(where)
    rows = run(
        table,
        Subject(network, calibration, test),
        samples=samples or table.samples,
        seeds=numbers,
        limit=limit,
        batch_size=batch,
        cache=folder / "rows.jsonl",
        on_row=lambda row: output.say(f"{row['label']}: top-1 {row['top1']:.2f}, drop {row['drop']:.2f}"),
        progress=output.progress,
        device=where,
    )
    settings = {
        "samples": samples or table.samples,
        "calib": calib,
        "data": data,
        "n": rows[0]["n"],
        "device": described(where),
    }
    notes = report.remarks(table, network, settings)
    document = report.to_json(table, rows, notes)
    write_text(folder / f"{table.name}.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    write_text(folder / f"{table.name}.md", report.to_markdown(table, rows, notes))
    output.say()
    output.table(*report.table_lines(table, rows))
    for note in notes:
        output.say(f"- {note}")
    output.say(f"written to {folder}")
    output.emit(document)
