"""Images as files and bytes, for the tests of the data room."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visq.data import Dataset, Preprocess

SMALL = Preprocess(8, 8, mean=(0.5,) * 3, std=(0.5,) * 3)


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """Returns the bytes of a file of Pillow's format `form`."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns random pixels [height, width, 3] uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey_png(width: int, height: int, rows: int | None = None) -> bytes:
    """Returns a black PNG of any size in a few kilobytes; with `rows`, one that ends after so many."""
    stored = height if rows is None else rows

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + bytes(width) for _ in range(stored)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def write_images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 5) -> Path:
    """Writes `each` PNGs of one grey value a class; the value tells which image it is."""
    for number, (name, i) in enumerate(itertools.product(classes, range(each))):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number,) * 3).save(folder / f"{i}.png")
    return root


def values(dataset: Dataset, batch_size: int = 3) -> list[int]:
    """Returns the first pixel of every image of a data set, which tells which image of `write_images` it is."""
    return [int(v) for pixels, _ in dataset.pixel_batches(batch_size) for v in pixels[:, 0, 0, 0]]
