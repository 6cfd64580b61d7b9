"""Finds the image files that a command's arguments stand for."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from visq.errors import VisqError


def image_files(images: Sequence[str]) -> Iterator[str]:
    """Yields the files that arguments stand for: a file, all images below a folder, or the matches of a pattern.

    Raises:
        VisqError: a folder without images, or a pattern that matches nothing.
    """
    from visq.data.sources import FolderSource

    for image in images:
        path = Path(image).expanduser()
        if path.is_dir():
            found = [str(path / name) for name in FolderSource(path).list_paths()]
            if not found:
                raise VisqError(f"{path}: no images in this folder")
            yield from found
        elif not os.path.lexists(path) and glob.has_magic(str(path)):
            found = sorted(glob.glob(str(path), recursive=True))
            if not found:
                raise VisqError(f"{image}: no file matches this pattern")
            yield from found
        else:
            yield str(path)
