"""`visq predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visq.cli import options
from visq.cli.output import Output


def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option("--top", min=1, help="So many classes, likeliest first.")] = 5,
    upright: Annotated[
        bool, typer.Option("--upright/--as-stored", help="Turn photos as their EXIF orientation says.")
    ] = True,
    threads: options.Threads = None,
    json_to: options.JsonTo = None,
) -> None:
    """Classify images with the integer engine; torch is not needed and not loaded."""
    output = Output(json_to)
    from visq.runtime import load_engine

    found = load_engine(folder, threads=threads).predict(images, top=top, upright=upright)
    rows = []
    for image, predictions in zip(images, found, strict=True):
        output.say(f"{image}: " + ", ".join(f"{p.name} {100 * p.probability:.1f} %" for p in predictions))
        classes = [{"index": p.index, "name": p.name, "probability": p.probability} for p in predictions]
        rows.append({"image": str(image), "top": classes})
    output.emit({"artifact": str(folder), "predictions": rows})
