"""`visq predict`."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from visq.cli import options
from visq.cli.files import image_files
from visq.cli.output import Output
from visq.errors import VisqError
from visq.files import replacing

if TYPE_CHECKING:
    from visq.runtime import Prediction

#: Unreadable images that are named on stderr; more of them are only counted.
_MOST_NAMED = 5


def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders of them, or patterns.")],
    top: Annotated[int, typer.Option("--top", min=1, help="So many classes, likeliest first.")] = 5,
    upright: Annotated[
        bool, typer.Option("--upright/--as-stored", help="Turn photos as their EXIF orientation says.")
    ] = True,
    batch: options.Batch = 32,
    backend: Annotated[str, typer.Option("--backend", help="int, the engine, or cuda, the engine on a GPU.")] = "int",
    threads: options.Threads = None,
    json_to: options.JsonTo = None,
    jsonl: Annotated[
        Path | None, typer.Option("--jsonl", metavar="FILE", help="Write a JSON object a line for each image.")
    ] = None,
    csv_to: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a CSV line for each image and class.")
    ] = None,
) -> None:
    """Classify images with the integer engine; on the CPU torch is not needed and not loaded."""
    output = Output(json_to)
    from visq.runtime import load_engine

    engine = load_engine(folder.expanduser(), backend=backend, threads=threads)
    rows: list[dict[str, Any]] = []
    bad, count = 0, 0
    with _lines("--jsonl", jsonl) as lines, _lines("--csv", csv_to) as table:
        writer = csv.writer(table) if table else None
        if writer:
            writer.writerow(["image", "rank", "index", "name", "probability", "error"])
        names, given = itertools.tee(image_files(images))
        for image, found in zip(names, engine.predict_each(given, top, upright=upright, batch=batch), strict=True):
            count += 1
            if isinstance(found, VisqError):
                bad += 1
                if len(images) == 1 and Path(images[0]).expanduser() == Path(image):
                    raise found
                if bad <= _MOST_NAMED:
                    output.warn(str(found))
            else:
                text = ", ".join(f"{p.name} {100 * p.probability:.1f} %" for p in found)
                output.say(f"{image}: {text}")
            row = _row(image, found)
            if json_to is not None:
                rows.append(row)
            if lines:
                lines.write(json.dumps(row) + "\n")
            if writer:
                writer.writerows(_cells(image, found))
    good = [row for row in rows if "top" in row]
    output.emit({"artifact": str(folder), "predictions": good, "errors": [row for row in rows if "top" not in row]})
    if bad:
        rest = "nothing was classified" if bad == count else "the others were classified"
        raise VisqError(f"{bad} of {count} images cannot be read; {rest}")


def _row(image: str, found: list[Prediction] | VisqError) -> dict[str, Any]:
    if isinstance(found, VisqError):
        return {"image": image, "error": str(found)}
    return {"image": image, "top": [{"index": p.index, "name": p.name, "probability": p.probability} for p in found]}


def _cells(image: str, found: list[Prediction] | VisqError) -> list[list[object]]:
    if isinstance(found, VisqError):
        return [[image, "", "", "", "", str(found)]]
    return [[image, rank, p.index, p.name, p.probability, ""] for rank, p in enumerate(found, start=1)]


@contextlib.contextmanager
def _lines(option: str, path: Path | None) -> Iterator[TextIO | None]:
    """Opens a file that is written line by line and appears when it is whole; None without a path.

    Raises:
        VisqError: it cannot be written; before anything is computed if that is known.
    """
    if path is None:
        yield None
        return
    path = path.expanduser()
    try:
        if path.is_dir():
            raise VisqError(f"{option} {path} is a folder; give a file's name")
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            yield file
    except BrokenPipeError:  # standard output's, not the file's
        raise
    except OSError as error:
        raise VisqError(f"{option} {path}: cannot be written ({error.strerror or error})") from error
