"""`visq upscale`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from visq.cli import options
from visq.cli.files import image_files, png_targets, read_pixels
from visq.cli.output import Output


def upscale(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact of a network that enlarges images.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders of them, or patterns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the PNG files, which keep their names.")],
    tile: Annotated[
        int, typer.Option("--tile", min=1, help="Pixels a side that run at once; larger images are cut.")
    ] = 128,
    overlap: Annotated[
        int, typer.Option("--overlap", min=0, help="Pixels that neighbouring tiles share, at least.")
    ] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    threads: options.Threads = None,
    json_to: options.JsonTo = None,
) -> None:
    """Enlarge images of any size with the integer engine; torch is not needed and not loaded."""
    output = Output(json_to)
    from PIL import Image

    from visq.data.colours import write_png
    from visq.runtime import load_engine
    from visq.runtime.upscaling import spans, upscale

    spans(1, tile, overlap)  # refuses tiles that make no sense
    engine = load_engine(folder.expanduser(), threads=threads)
    targets = png_targets(image_files(images), out, overwrite=overwrite)
    rows = []
    for target, source in targets.items():
        pixels = read_pixels(source, engine.preprocess.channels)
        start = time.perf_counter()
        found = upscale(engine, pixels, tile=tile, overlap=overlap)
        seconds = time.perf_counter() - start
        write_png(Image.fromarray(found if found.shape[2] == 3 else found[..., 0]), target)
        height, width = found.shape[:2]
        rate = height * width / 1e6 / seconds
        output.say(f"{target}: {width} x {height}, {seconds:.2f} s, {rate:.2f} megapixels a second")
        rows.append({"image": str(source), "out": str(target), "size": [height, width], "seconds": seconds})
    output.emit({"artifact": str(folder), "kernel": engine.kernel, "images": rows})
