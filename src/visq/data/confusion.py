"""Scores classes of pixels: one confusion matrix, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visq.errors import VisqError

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Segmentation:
    """Holds one confusion matrix over all pixels of all images: pixels of class i that were called j."""

    matrix: Counts
    images: int

    @property
    def iou(self) -> tuple[float | None, ...]:
        """Returns the intersection over union of every class; None for a class that neither has."""
        both = np.diag(self.matrix)
        either = self.matrix.sum(0) + self.matrix.sum(1) - both
        return tuple(float(b / e) if e else None for b, e in zip(both, either, strict=True))

    @property
    def mean_iou(self) -> float:
        found = [value for value in self.iou if value is not None]
        return sum(found) / len(found)

    @property
    def accuracy(self) -> float:
        """Returns the share of pixels whose class is right."""
        return float(np.diag(self.matrix).sum() / self.matrix.sum())


def confusion(found: Counts, mask: NDArray[np.uint8], classes: int, ignore: int | None, name: str) -> Counts:
    """Returns [classes, classes]: pixels of class i that were called j, without those that do not count."""
    counts = mask < classes if ignore is None else mask != ignore
    known = mask[counts]
    if known.size and int(known.max()) >= classes:
        raise VisqError(
            f"the mask of {name} has class {int(known.max())}, and the network has {classes}: 0 to {classes - 1}"
        )
    pairs = known.astype(np.int64) * classes + found[counts]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
