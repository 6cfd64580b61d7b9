"""`visq segment`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from visq.cli import options
from visq.cli.files import image_files, png_targets, read_pixels
from visq.cli.output import Output


def segment(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="An artifact of a network that gives each pixel a class.")
    ],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders of them, or patterns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the masks, PNG files of the images' names.")],
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Write each image mixed with its colours beside the mask.")
    ] = False,
    tile: Annotated[
        int, typer.Option("--tile", min=1, help="Pixels a side that run at once; larger images are cut.")
    ] = 1024,
    overlap: Annotated[
        int, typer.Option("--overlap", min=0, help="Pixels that neighbouring tiles share, at least.")
    ] = 256,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    threads: options.Threads = None,
    json_to: options.JsonTo = None,
) -> None:
    """Give each pixel of images of any size a class with the integer engine; torch is not needed and not loaded."""
    output = Output(json_to)
    import numpy as np
    from PIL import Image

    from visq.data import colours
    from visq.runtime import load_engine, segmenting
    from visq.runtime.upscaling import spans

    spans(1, tile, overlap)  # refuses tiles that make no sense
    engine = load_engine(folder.expanduser(), threads=threads)
    classes = engine.program.output_shape[0]
    names = list(engine.config.classes or map(str, range(classes)))
    beside = _overlay if overlay else None
    sources = png_targets(image_files(images), out, overwrite=overwrite, beside=beside, taken=("legend.png",))
    rows = []
    for target, source in sources.items():
        pixels = read_pixels(source, engine.preprocess.channels)
        start = time.perf_counter()
        found = segmenting.segment(engine, pixels, tile=tile, overlap=overlap)
        seconds = time.perf_counter() - start
        colours.write_png(colours.mask_image(found, classes), target)
        if overlay:
            mixed = Image.fromarray(colours.overlay(pixels, found, classes))
            colours.write_png(mixed, _overlay(target))
        shares = np.bincount(found.ravel(), minlength=classes) / found.size
        most = ", ".join(f"{names[i]} {100 * shares[i]:.0f} %" for i in np.argsort(-shares)[:3] if shares[i] > 0)
        height, width = found.shape
        output.say(f"{target}: {width} x {height}, {seconds:.2f} s; {most}")
        rows.append(
            {
                "image": str(source),
                "out": str(target),
                "size": [height, width],
                "seconds": seconds,
                "shares": {name: float(share) for name, share in zip(names, shares, strict=True)},
            }
        )
    colours.write_png(colours.legend(names), out / "legend.png")
    hexes = ["#" + bytes(colour).hex() for colour in colours.palette(classes)]
    named = dict(zip(names, hexes, strict=True))
    output.table(("number", "class", "colour"), [(str(i), *pair) for i, pair in enumerate(named.items())])
    output.emit({"artifact": str(folder), "kernel": engine.kernel, "colours": named, "images": rows})


def _overlay(target: Path) -> Path:
    return target.with_name(f"{target.stem}-overlay.png")
