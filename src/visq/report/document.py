"""The report as data: everything the page shows, and what `--json` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visq._version import __version__
from visq.artifact import is_artifact, load
from visq.errors import VisqError
from visq.progress import Progress
from visq.report.artifact import description
from visq.report.compared import artifact_comparison, rows_comparison
from visq.report.measuring import Images, measure
from visq.report.settings import Settings
from visq.report.timing import time_engine
from visq.runtime import Engine, load_engine

Row = dict[str, Any]

#: Significant digits of every number: the last bits of float sums differ between machines.
DIGITS = 6


def artifact_document(
    folders: Sequence[Path | str], settings: Settings | None = None, *, progress: Progress | None = None
) -> Row:
    """Returns the report about one artifact or several.

    Raises:
        VisqError: a folder that is not an artifact, images or an FP32 model that do not fit it.
    """
    settings, progress = settings or Settings(), progress or Progress("silent")
    if not folders:
        raise VisqError("no artifact is given; pass an artifact's folder or the JSON of `visq compare`")
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not is_artifact(path):
            raise VisqError(
                f"{path} is not an artifact; a report takes artifacts' folders or one JSON of `visq compare`"
            )
    images = Images(settings, progress)
    rows = [artifact_row(name, path, settings, images, progress) for name, path in named(paths)]
    found = {
        "kind": "artifacts",
        "visq_version": __version__,
        "artifacts": rows,
        "comparison": artifact_comparison(rows) if len(rows) > 1 else None,
    }
    return rounded(found)


def comparison_document(path: Path | str) -> Row:
    """Returns the report about the JSON of `visq compare`.

    Raises:
        VisqError: a file that cannot be read, or holds something else.
    """
    found = rows_comparison(Path(path))
    return rounded({"kind": "comparison", "visq_version": __version__, "artifacts": [], "comparison": found})


def artifact_row(name: str, folder: Path, settings: Settings, images: Images, progress: Progress) -> Row:
    """Returns all of one artifact's numbers, and what could not be measured."""
    progress.say(f"{name}: reading")
    model = load(folder)
    engine = None if model.artifact.program is None else load_engine(folder, threads=settings.threads)
    row = description(name, folder, model, engine)
    missing: list[Row] = []
    row |= measure(name, model, engine, images, missing)
    row["time"] = timed(name, folder, engine, settings, progress, missing)
    row["missing"] = missing
    return row


def timed(
    name: str, folder: Path, engine: Engine | None, settings: Settings, progress: Progress, missing: list[Row]
) -> Row | None:
    if engine is None:
        missing.append({"what": "latency", "why": "the artifact has no program for the integer engine", "option": None})
        return None
    if not settings.time:
        missing.append({"what": "latency", "why": "it was not measured", "option": "--time"})
        return None
    progress.say(f"{name}: measuring latency")
    return time_engine(folder, engine)


def named(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Returns a name for each artifact: its folder's, or its path where two folders share a name."""
    names = [path.absolute().name for path in paths]
    return [
        (name if names.count(name) == 1 else os.path.normpath(path), path)
        for name, path in zip(names, paths, strict=True)
    ]


def rounded(value: Any) -> Any:
    """Returns a document whose floats have `DIGITS` significant digits and whose tuples are lists."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
