"""Shows classes of pixels as colours: a palette, a mask as a PNG with it, and pictures for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from visq.errors import VisqError
from visq.files import replacing

Pixels = NDArray[np.uint8]

#: A PNG's palette has no more colours.
MOST_CLASSES = 256
#: Height of a line of the legend, and width of its patch [pixels].
_LINE, _PATCH = 18, 28


def palette(classes: int) -> Pixels:
    """Returns a colour for each class, [classes, 3]: the map of Pascal VOC from its second colour on.

    Raises:
        VisqError: more classes than a PNG's palette has colours.
    """
    if classes > MOST_CLASSES:
        raise VisqError(f"{classes} classes are more than the {MOST_CLASSES} colours of a PNG's palette")
    numbers = (np.arange(classes) + 1) % MOST_CLASSES
    bits = (numbers[:, None, None] >> (3 * np.arange(8)[:, None] + np.arange(3))) & 1
    return (bits << (7 - np.arange(8))[:, None]).sum(1).astype(np.uint8)


def mask_image(found: NDArray[np.integer], classes: int) -> Image.Image:
    """Returns class numbers [H, W] as an image whose palette has their colours; its pixels are the numbers."""
    image = Image.frombytes("P", (found.shape[1], found.shape[0]), found.astype(np.uint8).tobytes())
    image.putpalette(palette(classes).ravel().tolist())
    return image


def overlay(pixels: Pixels, found: NDArray[np.integer], classes: int) -> Pixels:
    """Returns an image [H, W, 3] half mixed with the colours of its classes [H, W]; grey for numbers beyond them."""
    colours = np.concatenate([palette(classes), np.full((MOST_CLASSES, 3), 128, np.uint8)])
    shown = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return ((shown.astype(np.uint16) + colours[found]) // 2).astype(np.uint8)


def legend(names: Sequence[str]) -> Image.Image:
    """Returns a picture of every class's colour and name."""
    width = _PATCH + 12 + max(8 * len(name) for name in names)
    image = Image.new("RGB", (width, _LINE * len(names) + 2), "white")
    draw = ImageDraw.Draw(image)
    for i, (name, colour) in enumerate(zip(names, palette(len(names)).tolist(), strict=True)):
        draw.rectangle((2, i * _LINE + 2, _PATCH, (i + 1) * _LINE - 2), fill=tuple(colour))
        draw.text((_PATCH + 6, i * _LINE + 4), name.encode("ascii", "replace").decode(), fill="black")
    return image


def write_png(image: Image.Image, path: Path) -> None:
    """Writes an image under a temporary name and moves it into place. Raises VisqError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            image.save(temporary, format="PNG")
    except OSError as error:
        raise VisqError(f"{path} cannot be written: {error.strerror or error}") from error
