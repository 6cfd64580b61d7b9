"""Draws images beside their masks and the classes that a network found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visq.data.colours import legend, overlay, write_png
from visq.data.masks import subset

Pixels = NDArray[np.uint8]

#: Images that a picture shows.
MOST = 4
_GAP = 4


class MaskPicture:
    """Collects a few images of an evaluation: image, mask and result in a row, the legend below.

    Arguments:
        images: how many will be added. Neighbours look alike where they are frames of a film, so the picture shows
            images spread over all.
    """

    def __init__(self, images: int) -> None:
        self.rows: list[tuple[Pixels, Pixels, Pixels]] = []
        self._shown, self._added = set(subset(range(images), MOST)), 0

    def add(self, pixels: Pixels, mask: Pixels, found: Pixels) -> None:
        """Keeps an image [H, W, channels], its mask and the classes found, both [H, W], if the picture shows it."""
        if self._added in self._shown:
            self.rows.append((pixels, mask, found))
        self._added += 1

    def write(self, names: Sequence[str], path: Path) -> None:
        """Writes the picture as a PNG. Numbers without a class are grey."""
        classes = len(names)
        parts = [
            [Image.fromarray(np.broadcast_to(pixels, (*mask.shape, 3)).astype(np.uint8))]
            + [Image.fromarray(overlay(pixels, np.where(m < classes, m, classes), classes)) for m in (mask, found)]
            for pixels, mask, found in self.rows
        ]
        key = legend(names)
        width = max(3 * row[0].width + 2 * _GAP for row in parts)
        height = sum(row[0].height + _GAP for row in parts) + key.height
        picture, top = Image.new("RGB", (max(width, key.width), height), "white"), 0
        for row in parts:
            for i, part in enumerate(row):
                picture.paste(part, (i * (part.width + _GAP), top))
            top += row[0].height + _GAP
        picture.paste(key, (0, top))
        write_png(picture, path)
