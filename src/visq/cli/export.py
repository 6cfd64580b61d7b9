"""`visq export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from visq.cli import options
from visq.cli.output import Output, check_file, megabytes
from visq.cli.quantize import deploy_sizes
from visq.errors import VisqError


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")],
    format: Annotated[str, typer.Option("--format", help="onnx, or visq: one file for libvisq.")] = "onnx",
    data: Annotated[
        str | None, typer.Option("--data", help="Images to compare decisions on: a folder, a tar, fashion-mnist.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many of them.")] = 64,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HEIGHTxWIDTH", help="Images that a network takes which returns images."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    threads: options.Threads = None,
    json_to: options.JsonTo = None,
) -> None:
    """Write an artifact in another runtime's format, and compare it with the engine in the runtimes installed here."""
    output = Output(json_to)
    check_file("--out", out)
    from visq.export import export

    images = None if data is None else _images(folder, data, limit)
    sizes = deploy_sizes(size, "--size")
    if len(sizes) > 1:
        raise VisqError(f"--size {size!r}: a file takes images of one size")
    found = export(
        *(folder, out), format=format, images=images, size=next(iter(sizes), None), threads=threads, overwrite=overwrite
    )
    output.say(", ".join(filter(None, (f"{found.path}: {megabytes(found.bytes)}", found.checked))))
    if not found.agreement:
        output.warn("no runtime for this format is installed, so the file was not run")
    header = ("runtime", "images", "decisions equal", "SQNR of logits", "ms an image", "engine, ms")
    rows = [
        (
            row.runtime,
            str(row.images),
            f"{100 * row.same:.1f} %" if found.real_images else "",
            f"{row.sqnr_db:.1f} dB",
            f"{row.ms:.2f}",
            f"{row.engine_ms:.2f}",
        )
        for row in found.agreement
    ]
    if rows:
        output.table(header, rows)
    if not found.real_images:
        output.say("run on random images only; --data compares decisions on real ones")
    output.emit({"file": str(found.path), "bytes": found.bytes, "agreement": [asdict(row) for row in found.agreement]})


def _images(folder: Path, data: str, limit: int) -> Any:
    """Images drawn from a data set as the artifact's network takes them."""
    import numpy as np

    from visq.artifact import read_config
    from visq.data import Preprocess, open_dataset

    preprocess = Preprocess.from_dict(read_config(folder).preprocess)
    dataset = open_dataset(data, preprocess, split="test")
    batches = dataset.subset(min(limit, len(dataset)), 0).batches(32)
    return np.concatenate([batch.numpy() for batch, _ in batches])
