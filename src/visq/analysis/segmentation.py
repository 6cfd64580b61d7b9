"""Measures networks that give each pixel a class: intersection over union of every class, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from visq.data.masks import MaskPair
from visq.errors import VisqError
from visq.progress import Progress

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


@torch.no_grad()
def evaluate_masks(
    model: Any, pairs: Sequence[MaskPair], *, ignore: int | None = None, progress: Progress | None = None
) -> Segmentation:
    """Returns the confusion matrix of a network over images with masks, in their own sizes.

    Arguments:
        model: [1, C, H, W], normalized by `model.card.preprocess`, -> logits [1, classes, h, w]. A smaller map is
            enlarged bilinearly to the mask's size.
        ignore: a class number that does not count, by default every number that the network has no class for.
    Raises:
        VisqError: the network does not return maps, a mask has a class that the network lacks and `ignore` is another
            one, logits that are not finite, no pixel that counts, or as `MaskPair.read`.
    """
    preprocess, matrix = model.card.preprocess, np.zeros((0, 0), np.int64)
    model.eval()
    with (progress or Progress("silent")).task("evaluating", total=len(pairs)) as task:
        for pair in pairs:
            pixels, mask = pair.read(preprocess.channels)
            images = preprocess.normalize(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])
            logits: Tensor = model(images)
            if logits.ndim != 4:
                raise VisqError(f"{model.card.name} gives an image one class, not each pixel; evaluate it with --data")
            if not torch.isfinite(logits).all():
                raise VisqError(f"the logits of {pair.name} hold NaN or Inf")
            if logits.shape[2:] != mask.shape:
                logits = F.interpolate(logits, mask.shape, mode="bilinear", align_corners=False)
            classes = logits.shape[1]
            if not matrix.size:
                matrix = np.zeros((classes, classes), np.int64)
            matrix += confusion(logits.argmax(1)[0].numpy(), mask, classes, ignore, pair.name)
            task.advance(1)
    if not matrix.sum():
        raise VisqError("no pixel of these masks has a class that counts")
    return Segmentation(matrix, len(pairs))


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
