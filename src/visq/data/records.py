"""What a data source lists: images by name, with their class and where to read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np

from visq.errors import VisqError

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])
#: A file with more bytes than this is no image anyone has; it is not read into memory.
MOST_BYTES = 1 << 30
# The folders a split is read from where several split folders lie beside each other, best first.
_SPLIT_FOLDERS = {
    "train": ("train",),
    "calib": ("train",),
    "test": ("val", "valid", "validation", "test"),
}
_ALL_SPLIT_FOLDERS = frozenset(name for names in _SPLIT_FOLDERS.values() for name in names)


class Source(Protocol):
    """Reads an image by the key its record carries; safe to call from several threads."""

    def read(self, key: int) -> bytes | np.ndarray:
        """Returns a file's bytes, or pixels [H, W] or [H, W, 3] uint8. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One image.

    Attributes:
        name: path below the split folder: class folder and file.
        class_name: its class folder; None for an image without a label.
        source, key: `source.read(key)` returns its bytes.
    """

    name: str
    class_name: str | None
    source: Source
    key: int


def is_image(name: str) -> bool:
    """Returns whether a path ends like an image and no part of it is hidden."""
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def make_records(found: dict[str, int], source: Source, split: str, where: str) -> list[Record]:
    """Returns records sorted by name, each with the folder its image lies in as its class.

    Where split folders lie beside each other (train and val) only the wanted one is used.

    Arguments:
        found: the source's key of every image, by path.
        where: what errors call the source.
    Raises:
        VisqError: no image, no folder for `split`, or images at different depths.
    """
    top = {PurePosixPath(path).parts[0] for path in found if "/" in path}
    splits = top & _ALL_SPLIT_FOLDERS
    if len(splits) > 1:
        wanted = next((name for name in _SPLIT_FOLDERS[split] if name in splits), None)
        if wanted is None:
            raise VisqError(f"{where}: no folder for split {split} among {', '.join(sorted(splits))}")
        found = {path: key for path, key in found.items() if path.startswith(f"{wanted}/")}
    if not found:
        raise VisqError(f"{where}: no images ({', '.join(sorted(SUFFIXES))}) in it")
    depths: dict[int, str] = {}
    for path in sorted(found):
        depths.setdefault(len(PurePosixPath(path).parts), path)
    if len(depths) > 1:
        raise VisqError(f"{where}: images at different depths, for example {' and '.join(list(depths.values())[:2])}")
    records = []
    for path, key in found.items():
        parts = PurePosixPath(path).parts[-2:]
        records.append(Record("/".join(parts), parts[0] if len(parts) == 2 else None, source, key))
    return sorted(records, key=lambda record: record.name)
