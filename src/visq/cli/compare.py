"""`visq compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visq.cli import options
from visq.cli.output import Output, check_file, set_threads
from visq.cli.understood import say_understood
from visq.errors import VisqError
from visq.files import write_text


def compare(
    model: Annotated[list[str], typer.Option("--model", help="A model's name; repeat it or put commas for several.")],
    recipes: Annotated[str, typer.Option("--recipes", help="Names or YAML files with commas between them.")],
    data: options.Data,
    calib: Annotated[
        str | None, typer.Option("--calib", help="Calibration images; by default those of --data.")
    ] = None,
    samples: options.Samples = 256,
    seeds: Annotated[str, typer.Option("--seeds", help="Calibration seeds with commas between them.")] = "0",
    limit: options.Limit = None,
    backend: Annotated[
        str,
        typer.Option(
            "--backend", help="What quantized rows are measured on: sim, int (the engine), or cuda (on a GPU)."
        ),
    ] = "sim",
    json_to: options.JsonTo = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table there.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute rows again that an earlier run finished.")] = False,
    strict: options.Strict = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    batch: options.Batch = 32,
    checkpoint: options.Checkpoint = None,
    ema: options.Ema = False,
    image_size: options.ImageSize = None,
    stride: options.Stride = None,
    resize: options.Resize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    interpolation: options.Interpolation = None,
    classes: options.Classes = None,
) -> None:
    """Quantize models with several recipes and seeds and measure them on the same images, FP32 first.

    With --json F, finished rows are kept in F.rows.jsonl, so that the same command goes on after an interruption.
    """
    output = Output(json_to)
    if markdown is not None:
        check_file("--markdown", markdown)
    from visq import analysis
    from visq.analysis import report
    from visq.data import open_dataset
    from visq.device import resolve_device
    from visq.recipes import get_recipe

    set_threads(threads)
    where = resolve_device(device)
    names = options.names("--model", ",".join(model))
    numbers = options.integers("--seeds", seeds)
    if checkpoint is not None and len(names) > 1:
        raise VisqError("--checkpoint is for one model; compare several by their packaged weights")
    chosen = [get_recipe(name) for name in options.names("--recipes", recipes)]
    model_options = options.ModelOptions(checkpoint, ema, image_size, stride, resize, mean, std, interpolation, classes)
    subjects = []
    for name in names:
        network = model_options.load(name)
        card = network.card
        say_understood(output, card)
        test = open_dataset(data, card.preprocess, split="test", classes=card.classes, strict=strict)
        calibration = open_dataset(calib or data, card.preprocess, split="calib", strict=strict)
        subjects.append(analysis.Subject(network, calibration, test))
    output.kernels(where)
    cache = None if json_to in (None, "-") else Path(f"{json_to}.rows.jsonl")
    if cache is not None and fresh:
        cache.unlink(missing_ok=True)
    rows = analysis.compare(
        subjects,
        chosen,
        samples=samples,
        seeds=numbers,
        limit=limit,
        batch_size=batch,
        backend=backend,
        cache=cache,
        on_row=lambda row: output.say(
            f"{row['model']} {row['recipe']}: top-1 {row['top1']:.2f}, drop {row['drop']:.2f}"
        ),
        progress=output.progress,
        device=where,
    )
    output.say()
    output.table(report.HEADER, report.table(rows))
    if markdown is not None:
        write_text(markdown, report.to_markdown(rows))
    output.emit(report.to_json(rows))
