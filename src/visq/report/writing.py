"""From artifacts to a file: `visq.report.write`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visq.errors import VisqError
from visq.files import write_text
from visq.progress import Progress
from visq.report.document import artifact_document, comparison_document
from visq.report.page import render
from visq.report.settings import Settings


def write(
    folders: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    data: str | None = None,
    limit: int = 256,
    site_images: int = 16,
    fp32: str | None = None,
    any_fp32: bool = False,
    time: bool = False,
    threads: int | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes one self-contained HTML page and returns its numbers.

    Arguments:
        folders: one or several artifacts, or one JSON file of `visq compare`.
        out: the HTML file, which appears complete or not at all.
        data, limit, site_images, fp32, any_fp32, time, threads: as in `visq.report.document.Settings`.
    Raises:
        VisqError: bad input of any kind; no file is written then.
    """
    out = Path(out)
    if not out.absolute().parent.is_dir():
        raise VisqError(f"cannot write {out}: its folder does not exist")
    if out.is_dir():
        raise VisqError(f"cannot write {out}: it is a folder; name an HTML file in it")
    settings = Settings(data, limit, site_images, fp32, any_fp32, time, threads, batch_size)
    targets = [folders] if isinstance(folders, Path | str) else list(folders)
    found = described(targets, settings, progress)
    write_text(out, render(found))
    return found


def described(targets: Sequence[Path | str], settings: Settings, progress: Progress | None) -> dict[str, Any]:
    """Returns the document of artifacts, or of the one JSON file among the targets."""
    files = [target for target in targets if Path(target).is_file()]
    if files and len(targets) > 1:
        raise VisqError(
            f"{files[0]} is a file; a report takes artifacts' folders or one JSON of `visq compare`, not both"
        )
    return comparison_document(files[0]) if files else artifact_document(targets, settings, progress=progress)
