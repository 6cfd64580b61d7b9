"""Enlarges images of any size with the engine, large ones in tiles that overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from visq.errors import VisqError
from visq.runtime.engine import Engine

Pixels = NDArray[np.uint8]

#: Pixels a side of a tile, and pixels that neighbours share at least.
TILE, OVERLAP = 128, 16


@dataclass(frozen=True)
class Span:
    """Pixels [first, end) of one side that a tile reads, of which it writes [low, high)."""

    first: int
    end: int
    low: int
    high: int


def spans(side: int, tile: int, overlap: int) -> list[Span]:
    """Returns the tiles along a side: all as long as the first, the last at the end, cut in the middle of an overlap.

    Raises:
        VisqError: the overlap leaves nothing of a tile.
    """
    if tile < 1 or not 0 <= overlap < tile:
        raise VisqError(f"tiles of {tile} pixels cannot overlap by {overlap}; take an overlap from 0 to {tile - 1}")
    if side <= tile:
        return [Span(0, side, 0, side)]
    count = -(-(side - overlap) // (tile - overlap))
    starts = [round(i * (side - tile) / (count - 1)) for i in range(count)]
    cuts = [0, *((start + before + tile) // 2 for before, start in pairwise(starts)), side]
    return [Span(start, start + tile, *cuts[i : i + 2]) for i, start in enumerate(starts)]


def upscale(engine: Engine, image: Pixels, *, tile: int = TILE, overlap: int = OVERLAP) -> Pixels:
    """Returns an image [H, W, 3] uint8 enlarged and rounded to 8 bits, [scale H, scale W, 3].

    An image of at most a tile runs as a whole. A network whose scan runs along the image sees only its tile of a larger
    one, so that tiles change the result a little.

    Raises:
        VisqError: the network does not return images, the tiles make no sense, or the output holds NaN or Inf.
    """
    program = engine.program
    if not program.output_map:
        raise VisqError(f"{engine.folder}: this network returns classes, not images; `visq predict` is for it")
    channels, height, _ = program.output_shape
    scale = height // program.height
    if scale < 1:
        raise VisqError(f"{engine.folder}: this network gives pixels a class; `visq segment` is for it")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        raise VisqError(f"an image to enlarge is uint8 [H, W, {channels}], not {image.dtype} {list(image.shape)}")
    out = np.zeros((image.shape[0] * scale, image.shape[1] * scale, channels), np.uint8)
    for rows, columns in tiles(image.shape[0], image.shape[1], tile, overlap):
        part = image[None, rows.first : rows.end, columns.first : columns.end].transpose(0, 3, 1, 2)
        found = engine(engine.preprocess.normalize_array(part))[0].transpose(1, 2, 0)
        if not np.isfinite(found).all():
            raise VisqError("the enlarged image holds NaN or Inf")
        pixels = np.rint(found.clip(0, 1) * np.float32(255)).astype(np.uint8)
        top, left = rows.low - rows.first, columns.low - columns.first
        inside = pixels[top * scale :, left * scale :]
        height, width = rows.high - rows.low, columns.high - columns.low
        out[rows.low * scale : rows.high * scale, columns.low * scale : columns.high * scale] = inside[
            : height * scale, : width * scale
        ]
    return out


def tiles(height: int, width: int, tile: int, overlap: int) -> Iterator[tuple[Span, Span]]:
    """Yields the spans of rows and of columns of every tile of an image."""
    for rows in spans(height, tile, overlap):
        for columns in spans(width, tile, overlap):
            yield rows, columns
