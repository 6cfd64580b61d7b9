"""What every executor of a program asks of its images."""

from __future__ import annotations

from typing import Any

import numpy as np

from visq.errors import VisqError
from visq.integer.arithmetic import Floats
from visq.integer.program import Program


def checked_images(program: Program, images: Any) -> Floats:
    """Images as a program takes them, contiguous: [batch, channels, size, size] float32, finite.

    Raises:
        VisqError: another type, shape or dtype, or values that are not finite.
    """
    expected = (program.channels, program.size, program.size)
    if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.shape[1:] != expected:
        found = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise VisqError(f"images must be float32 [batch, {', '.join(map(str, expected))}], not {found}")
    if not np.isfinite(images).all():
        raise VisqError("images hold NaN or Inf")
    return np.ascontiguousarray(images)
