"""`visq eval`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visq.cli import options
from visq.cli.other_outputs import check_data, evaluate_classes_of_pixels, evaluate_pairs
from visq.cli.output import Output, megabytes, set_threads
from visq.cli.understood import say_understood
from visq.errors import VisqError

if TYPE_CHECKING:
    import torch

    from visq.runtime import Engine


def evaluate(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A model's name or an artifact's folder.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="`fashion-mnist` (embedded), a folder of class folders, or a tar of one."),
    ] = None,
    hr: Annotated[
        Path | None, typer.Option("--hr", metavar="DIR", help="For restoration: the images as they should be.")
    ] = None,
    lr: Annotated[
        Path | None,
        typer.Option("--lr", metavar="DIR", help="The same images made small, with `x4` behind the name or not."),
    ] = None,
    border: Annotated[
        int | None,
        typer.Option("--border", min=0, help="Pixels that PSNR and SSIM leave out at each side; the scale by default."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            "--masks", metavar="DIR", help="For a class for each pixel: a folder or tar of `images` and `labels`."
        ),
    ] = None,
    ignore: Annotated[
        int | None,
        typer.Option(
            "--ignore",
            min=0,
            max=255,
            help="A class number of the masks that does not count; by default all unknown ones.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", metavar="PNG", help="Draw four of the images, their masks and what was found; for --masks."
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", help="fp32 (models by name), sim, int or cuda (artifacts); sim by default."),
    ] = None,
    limit: options.Limit = None,
    json_to: options.JsonTo = None,
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
    """Measure a model or an artifact: top-1 and top-5, PSNR and SSIM of pairs, or mean IoU of masks."""
    output = Output(json_to)
    from visq import analysis, parallel
    from visq.analysis.labels import label_hint
    from visq.data import open_dataset
    from visq.device import resolve_device
    from visq.runtime import engine_backends

    check_data(data, hr, lr, masks)
    if picture is not None and masks is None:
        raise VisqError("--picture draws classes of pixels; give --masks")
    set_threads(threads)
    where = resolve_device(device)
    if backend == "int" and where.type != "cpu":
        raise VisqError(f"--device {device} is for fp32, sim and cuda; backend int runs on the CPU")
    model_options = options.ModelOptions(checkpoint, ema, image_size, stride, resize, mean, std, interpolation, classes)
    model, used, size = open_target(target, backend, model_options, None if where.type == "cpu" else str(where))
    say_understood(output, model.card)
    dataset: Any = None
    if data is not None:
        dataset = open_dataset(data, model.card.preprocess, split="test", classes=model.card.classes, strict=strict)
    if used in engine_backends():
        engine_report(output, model.engine)
    else:
        place(output, model, where)
        output.kernels(where)
    if hr is not None and lr is not None:
        evaluate_pairs(output, model, used, size, hr, lr, border)
        return
    if masks is not None:
        evaluate_classes_of_pixels(output, model, used, size, masks, ignore, limit, picture)
        return
    parallel.start()
    try:
        result = analysis.evaluate(model, dataset, batch_size=batch, limit=limit, progress=output.progress)
    finally:
        parallel.stop()
    output.skipped(result.skipped)
    row = analysis.evaluation_row(model, result, backend=used, size=size)
    output.say(f"{row['model']} {row['recipe']} ({used}): top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %")
    speed = f"{result.seconds:.1f} s, {result.images_per_second:.1f} images a second, {row['threads']} threads"
    output.say(f"{result.n} images of {data} in {speed}; {megabytes(size)}")
    hint = label_hint(result.predictions, result.labels, dataset.classes)
    if hint is not None:
        output.warn(hint)
    output.emit(row)


def place(output: Output, model: Any, device: torch.device) -> None:
    """Moves a network to a device, and says when it then computes without the engine's bits."""
    from visq.simulation import move

    if not move(model, device):
        output.say(f"simulated in float32: {device} has no kernels with the engine's bits")


def open_target(
    target: str, backend: str | None, model_options: options.ModelOptions, gpu: str | None = None
) -> tuple[Any, str, int]:
    """Returns (model, backend, bytes) of a TARGET; raises VisqError where target, backend and options do not fit.

    `gpu` is the device of backend cuda; by default the current one.
    """
    from visq.analysis import EngineModel, fp32_bytes
    from visq.artifact import artifact_bytes, is_artifact, load
    from visq.models import list_models
    from visq.models.family import families
    from visq.runtime import engine_backends

    if backend not in (None, "fp32", "sim", *engine_backends()):
        raise VisqError(f"backend '{backend}' is unknown; there are fp32, sim, {' and '.join(engine_backends())}")
    folder = Path(target)
    known = {*families(), *(card.name for card in list_models())}
    if is_artifact(folder) or (folder.is_dir() and target not in known):
        model = EngineModel(folder, backend=backend, device=gpu) if backend in engine_backends() else load(folder)
        model_options.refuse_for_artifact(folder, model)
        if backend == "fp32":
            raise VisqError(
                f"{folder} is an artifact and holds no FP32 weights; evaluate the model by name for FP32, "
                "or use --backend sim"
            )
        return model, backend or "sim", artifact_bytes(folder)
    if target not in known:
        if folder.is_file():
            raise VisqError(f"'{target}' is a file; for a checkpoint say `visq eval vim --checkpoint {target}`")
        close = difflib.get_close_matches(target, known, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(close)}?" if close else "`visq models` lists those"
        raise VisqError(f"'{target}' is neither an artifact's folder nor a model's name; {meant}")
    if backend in ("sim", *engine_backends()):
        raise VisqError(
            f"'{target}' is an FP32 model, {backend} is for artifacts; quantize it first or use --backend fp32"
        )
    model = model_options.load(target)
    return model, "fp32", fp32_bytes(model)


def engine_report(output: Output, engine: Engine) -> None:
    """Prints which kernels run, and which operations are in floating point and why."""
    operations = len(engine.program.operations)
    output.say(f"engine: {engine.kernel}, {engine.threads} threads, {operations} operations")
    if engine.kernel == "oracle":
        output.warn("the C++ extension is not installed: the engine runs as slow NumPy")
    for why, names in grouped(engine.in_float).items():
        output.say(f"in float32: {len(names)} operations, {why} ({', '.join(names[:2])}{', ...' * (len(names) > 2)})")


def grouped(reasons: dict[str, str]) -> dict[str, list[str]]:
    """Returns names by their reason."""
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(why, []).append(name)
    return found
