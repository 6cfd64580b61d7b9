"""`visq quantize`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from visq.cli import options
from visq.cli.output import Output, check_folder, megabytes, set_threads
from visq.cli.self_check import least_verdict, print_check, stop_below
from visq.cli.understood import say_understood
from visq.errors import VisqError


def quantize(
    model: Annotated[
        str, typer.Option("--model", help="A name that `visq models` lists; a family's (`vim`) for any checkpoint.")
    ],
    recipe: Annotated[str, typer.Option("--recipe", help="A name that `visq recipes` lists, or a YAML file.")],
    calib: Annotated[str, typer.Option("--calib", help="Calibration images: `fashion-mnist`, a folder, or a tar.")],
    out: Annotated[Path, typer.Option("--out", help="The artifact's folder; must not exist yet.")],
    samples: options.Samples = 256,
    seed: options.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was killed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that is there.")] = False,
    without_positions: Annotated[
        bool,
        typer.Option("--without-positions", help="One scale per tensor where the recipe has scales per token or step."),
    ] = False,
    deploy_size: Annotated[
        str | None,
        typer.Option(
            "--deploy-size",
            metavar="HxW,...",
            help="Image sizes the engine prepares for beside that of calibration, such as 128x128,96x160.",
        ),
    ] = None,
    held_out: Annotated[
        int,
        typer.Option("--holdout", min=0, help="Images beside the calibration images that the self-check runs on."),
    ] = 64,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare the result with FP32 before it is saved.")
    ] = True,
    fail_below: Annotated[
        str | None,
        typer.Option(
            "--fail-below",
            metavar="good|doubtful",
            help="Exit with code 3 when the self-check's verdict is worse; the artifact is kept.",
        ),
    ] = None,
    strict: options.Strict = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    batch: options.Batch = 16,
    json_to: options.JsonTo = None,
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
    """Calibrate a model with a recipe, check the result against FP32, and write it as an artifact.

    Started by torchrun (`torchrun --nproc-per-node 2 -m visq.cli quantize ...`) several processes share the work.
    """
    output = Output(json_to)
    from visq import parallel, pipeline
    from visq.artifact import check_destination
    from visq.data import open_dataset
    from visq.device import resolve_device
    from visq.recipes import get_recipe

    set_threads(threads)
    where = resolve_device(device)
    least = least_verdict(fail_below, check)
    chosen = get_recipe(recipe)
    if without_positions:
        chosen = chosen.without_positions()
    sizes = deploy_sizes(deploy_size)
    check_destination(out, overwrite)
    check_folder("--out", out)
    model_options = options.ModelOptions(checkpoint, ema, image_size, stride, resize, mean, std, interpolation, classes)
    network = model_options.load(model)
    say_understood(output, network.card)
    source = open_dataset(calib, network.card.preprocess, split="calib", strict=strict)
    dataset, others = pipeline.draw(source, samples, held_out if check else 0, seed)
    output.say(
        f"{network.card.name} with {chosen.name} (scope {chosen.scope_name}) "
        f"on {samples} images of {calib}, seed {seed}"
    )
    output.kernels(where)
    found = 0 if others is None else len(others)
    if check and found < held_out:
        output.say(
            f"held-out images: {found} of {held_out}; {calib} has no more beside the {samples} calibration images"
        )
    parallel.start()
    try:
        result = pipeline.quantize(
            network,
            chosen,
            dataset,
            seed=seed,
            out=out,
            resume=resume,
            overwrite=overwrite,
            batch_size=batch,
            held_out=others,
            check=check,
            deploy_sizes=sizes,
            progress=output.progress,
            device=where,
        )
    finally:
        parallel.stop()
    output.skipped(dataset.skipped)
    for note in result.calibration.notes:
        output.say(f"note: {note}")
    extra = {"calibration_seconds": result.calibration.seconds, "peak_rss_bytes": result.peak_rss}
    if result.self_check is not None:
        extra["check_seconds"] = result.self_check.seconds
    report(output, out, result.model, extra)
    output.say(f"calibrated in {result.calibration.seconds:.1f} s, peak memory {result.peak_rss / 1e6:.0f} MB")
    if result.self_check is not None:
        made = f" ({result.self_check.kernel}, {result.self_check.seconds:.1f} s)"
        print_check(output, result.self_check.check, made)
    stop_below(output, result.check, least, out)


def deploy_sizes(text: str | None, option: str = "--deploy-size") -> list[tuple[int, int]]:
    """Returns the sizes (height, width) of `128x128,96x160`. Raises VisqError for any other text."""
    found = []
    for part in text.split(",") if text is not None else ():
        match = re.fullmatch(r"\s*([1-9]\d{0,6})x([1-9]\d{0,6})\s*", part)
        if match is None:
            raise VisqError(f"{option} {text!r}: sizes are written as HEIGHTxWIDTH, such as 128x128,96x160")
        found.append((int(match[1]), int(match[2])))
    return found


def report(output: Output, folder: Path, model: Any, extra: dict[str, Any]) -> None:
    """Prints and emits what an artifact holds: its config, coverage and size. `model` is the one in the artifact."""
    from visq.analysis import coverage
    from visq.analysis.left_out import left_out
    from visq.artifact import artifact_bytes, read_config

    config = read_config(folder)
    rows = coverage(model, config.recipe)
    size = artifact_bytes(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print_coverage(output, rows)
    for weights in left_out(model, config.recipe):
        output.say(f"stays in floating point: {weights}")
    output.say(f"{folder}: {megabytes(size)}, {size / parameters:.3f} bytes for each of {parameters:,} parameters")
    output.emit(
        {
            **config.to_json(),
            "coverage": rows,
            "bytes": size,
            "parameters": parameters,
            "bytes_per_parameter": size / parameters,
            **extra,
        }
    )


def print_coverage(output: Output, rows: list[dict[str, Any]]) -> None:
    """Prints the coverage table, and in one line the kinds of sites that the recipe leaves in floating point."""
    quantized = [row for row in rows if row["targeted"]]
    lines = [
        (
            row["kind"],
            f"{row['quantized']}/{row['targeted']}",
            ",".join(map(str, row["bits"])),
            "; ".join(row["granularity"]),
            row["kernel"],
        )
        for row in quantized
    ]
    if lines:
        output.table(("sites", "quantized", "bits", "granularity", "simulated by"), lines)
    rest = [f"{row['kind']} ({row['sites']})" for row in rows if not row["targeted"]]
    if rest:
        output.say(f"in floating point: {', '.join(rest)}")
    done, wanted = (sum(row[key] for row in rows) for key in ("quantized", "targeted"))
    output.say(f"{done} of {wanted} targeted sites quantized")
