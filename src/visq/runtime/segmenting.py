"""Gives each pixel of an image a class with the engine, large images in tiles that overlap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from visq.errors import VisqError
from visq.integer.resampling import bilinear
from visq.runtime.engine import Engine
from visq.runtime.upscaling import tiles

Pixels = NDArray[np.uint8]

#: Pixels a side of a tile, and pixels that neighbours share at least.
TILE, OVERLAP = 1024, 256


def segment(engine: Engine, image: Pixels, *, tile: int = TILE, overlap: int = OVERLAP) -> Pixels:
    """Returns the class numbers [H, W] of an image [H, W, channels] uint8.

    The logits of a smaller map are enlarged bilinearly, by the same function that `visq eval --masks` uses. A network
    whose scan runs along the image sees only its tile of an image beyond a tile, so that tiles change the result a bit.

    Raises:
        VisqError: the network gives pixels no class, the tiles make no sense, or the logits hold NaN or Inf.
    """
    program = engine.program
    if not program.output_map or program.output_shape[1] > program.height:
        other = "upscale" if program.output_map else "predict"
        raise VisqError(f"{engine.folder}: this network gives pixels no class; `visq {other}` is for it")
    channels = program.channels
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        raise VisqError(f"an image is uint8 [H, W, {channels}], not {image.dtype} {list(image.shape)}")
    found = np.zeros(image.shape[:2], np.uint8)
    for rows, columns in tiles(image.shape[0], image.shape[1], tile, overlap):
        part = image[None, rows.first : rows.end, columns.first : columns.end].transpose(0, 3, 1, 2)
        logits = engine(engine.preprocess.normalize_array(part))[0]
        if not np.isfinite(logits).all():
            raise VisqError("the logits hold NaN or Inf")
        classes = enlarged(logits, part.shape[2], part.shape[3]).argmax(0)
        inside = classes[rows.low - rows.first : rows.high - rows.first, columns.low - columns.first :]
        found[rows.low : rows.high, columns.low : columns.high] = inside[:, : columns.high - columns.low]
    return found


def enlarged(logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Returns logits [classes, h, w] enlarged bilinearly to [classes, height, width]."""
    if logits.shape[1:] == (height, width):
        return logits
    return bilinear(logits.transpose(1, 2, 0), height, width).transpose(2, 0, 1)
