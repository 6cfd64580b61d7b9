"""Finds the image files that a command's arguments stand for, reads them, and names what is written for each."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visq.errors import VisqError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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


def png_targets(
    names: Iterable[str],
    out: Path,
    *,
    overwrite: bool,
    beside: Callable[[Path], Path] | None = None,
    taken: Iterable[str] = (),
) -> dict[Path, Path]:
    """Returns the image of every PNG file to write.

    Arguments:
        beside: a further file that is written for each.
        taken: names that something else in `out` has.
    Raises:
        VisqError: two images of one name, or files that are there.
    """
    targets: dict[Path, Path] = {}
    for name in names:
        target = out / f"{Path(name).stem}.png"
        if target in targets or target.name in taken:
            other = targets.get(target, target.name)
            raise VisqError(f"{other} and {name} would both become {target}; write them into two folders")
        for path in (target, *(() if beside is None else (beside(target),))):
            if path.exists() and not overwrite:
                raise VisqError(f"{path} exists; choose another folder or pass --overwrite to replace it")
        targets[target] = Path(name)
    return targets


def read_pixels(source: Path, channels: int) -> NDArray[np.uint8]:
    """Returns an image [H, W, channels], upright. Raises VisqError where it cannot be read."""
    import numpy as np

    from visq.data.decode import UnreadableImage, decode_image
    from visq.data.sources import read_file

    try:
        pixels = np.asarray(decode_image(read_file(source), channels, upright=True).image)
    except (UnreadableImage, OSError) as error:
        raise VisqError(f"{source} cannot be read as an image: {error}") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]
