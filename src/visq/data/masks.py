"""Images with a class for each pixel: pairs of `images/NAME` and `labels/NAME.png`, in a folder or a tar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from visq.data.decode import UnreadableImage, decode_image, opened
from visq.data.records import Record
from visq.data.sources import FolderSource
from visq.data.tars import TarSource
from visq.errors import VisqError

Pixels = NDArray[np.uint8]
T = TypeVar("T")

#: Folders of the images and of the masks.
IMAGES, LABELS = "images", "labels"


@dataclass(frozen=True)
class MaskPair:
    """One image and its mask; both are read when they are asked for."""

    name: str
    image: Record
    mask: Record

    def read(self, channels: int) -> tuple[Pixels, Pixels]:
        """Returns the image [H, W, channels] and its class numbers [H, W], uint8.

        Raises:
            VisqError: a file cannot be read, the mask has colours, or the two differ in size.
        """
        pixels = np.asarray(_decoded(self.image, lambda data: np.asarray(decode_image(data, channels).image)))
        mask = _decoded(self.mask, _numbers)
        if pixels.shape[:2] != mask.shape:
            sizes = " and ".join(f"{shape[1]}x{shape[0]}" for shape in (pixels.shape, mask.shape))
            raise VisqError(f"{self.name}: image and mask have {sizes} pixels")
        return pixels.reshape(*mask.shape, channels), mask


def open_masks(path: Path | str) -> list[MaskPair]:
    """Returns the pairs of a folder or a tar with `images` and `labels` in it, sorted by name.

    Raises:
        VisqError: no such folder or tar, folders of other names, or an image without its mask.
    """
    where = Path(path).expanduser()
    source = FolderSource(where) if where.is_dir() else TarSource(where)
    found: dict[str, dict[str, Record]] = {IMAGES: {}, LABELS: {}}
    for record in source.records("test"):
        folder = record.class_name
        if folder not in found:
            raise VisqError(
                f"{where}: masks come in folders {IMAGES} and {LABELS}, and here is {folder or record.name}"
            )
        found[folder][PurePosixPath(record.name).stem] = record
    lonely = sorted(found[IMAGES].keys() ^ found[LABELS].keys())
    if lonely or not found[IMAGES]:
        what = f"{lonely[0]} is not in both" if lonely else "they are empty"
        raise VisqError(f"{where}: {IMAGES} and {LABELS} hold the same names, but {what}")
    return [MaskPair(name, record, found[LABELS][name]) for name, record in sorted(found[IMAGES].items())]


def without_masks(records: list[Record]) -> list[Record]:
    """Returns the images of `images` and `labels`, without labels; all records where the folders are others."""
    stems: dict[str | None, list[str]] = {}
    for record in records:
        stems.setdefault(record.class_name, []).append(PurePosixPath(record.name).stem)
    if stems.keys() != {IMAGES, LABELS} or sorted(stems[IMAGES]) != sorted(stems[LABELS]):
        return records
    return [replace(record, class_name=None) for record in records if record.class_name == IMAGES]


def subset(pairs: Sequence[T], limit: int | None) -> list[T]:
    """Returns at most `limit` items, spread over all and always the same ones."""
    if limit is None or limit >= len(pairs):
        return list(pairs)
    return [pairs[i * len(pairs) // limit] for i in range(limit)]


def _decoded(record: Record, decode: Callable[[bytes], Pixels]) -> Pixels:
    try:
        data = record.source.read(record.key)
        assert isinstance(data, bytes)  # files, not arrays
        return decode(data)
    except (UnreadableImage, OSError) as error:
        raise VisqError(f"{record.name} cannot be read: {error}") from error


def _numbers(data: bytes) -> Pixels:
    """Returns the class numbers of a mask: its grey values, or the indices of its palette."""
    with opened(data) as image:
        if image.mode not in ("L", "P"):
            raise UnreadableImage(f"a mask has one number a pixel, and this file has colours ({image.mode})")
        return np.array(image)
