"""`visq segment`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from visq.cli import options
from visq.cli.files import image_files
from visq.cli.output import Output
from visq.errors import VisqError


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
    from visq.data.decode import UnreadableImage, decode_image
    from visq.data.sources import read_file
    from visq.runtime import load_engine, segmenting
    from visq.runtime.upscaling import spans

    spans(1, tile, overlap)  # refuses tiles that make no sense
    engine = load_engine(folder.expanduser(), threads=threads)
    classes = engine.program.output_shape[0]
    names = list(engine.config.classes or map(str, range(classes)))
    sources = _targets(image_files(images), out, overlay, overwrite)
    rows = []
    for target, source in sources.items():
        try:
            decoded = decode_image(read_file(source), engine.preprocess.channels, upright=True).image
        except (UnreadableImage, OSError) as error:
            raise VisqError(f"{source} cannot be read as an image: {error}") from error
        pixels = np.asarray(decoded)
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
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


def _targets(names: Iterable[str], out: Path, overlay: bool, overwrite: bool) -> dict[Path, Path]:
    """Returns the image of every mask to write. Raises VisqError for two of one name, or files that are there."""
    targets: dict[Path, Path] = {}
    for name in names:
        target = out / f"{Path(name).stem}.png"
        if target in targets or target.name == "legend.png":
            other = targets.get(target, "the legend")
            raise VisqError(f"{other} and {name} would both become {target}; write them into two folders")
        for path in (target, *((_overlay(target),) if overlay else ())):
            if path.exists() and not overwrite:
                raise VisqError(f"{path} exists; choose another folder or pass --overwrite to replace it")
        targets[target] = Path(name)
    return targets
