"""Checks images before any executor runs a program on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from visq.errors import VisqError, need
from visq.integer.arithmetic import Floats
from visq.integer.program import Program

#: Normalized pixels stay below this, also where 8-bit pixels were not divided by 255 first.
LARGEST_PIXEL = 1 << 16

NOT_FINITE = "images hold NaN or Inf"
TOO_LARGE = f"images hold values beyond {LARGEST_PIXEL}; normalize them as the artifact's preprocess says"


def checked_images(program: Program, images: Any) -> Floats:
    """Returns images [batch, channels, height, width] float32, checked against the program and contiguous.

    Raises:
        VisqError: the type, shape or dtype is wrong, or values are not finite or beyond LARGEST_PIXEL.
    """
    expected = (program.channels, program.height, program.width)
    if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.shape[1:] != expected:
        found = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise VisqError(f"images must be float32 [batch, {', '.join(map(str, expected))}], not {found}")
    need(np.isfinite(images).all(), NOT_FINITE)
    need(np.abs(images).max(initial=0) <= LARGEST_PIXEL, TOO_LARGE)
    return np.ascontiguousarray(images)
