"""Measures networks that give each pixel a class: intersection over union of every class, and their mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visq.data.confusion import Segmentation, confusion
from visq.data.masks import MaskPair, Pixels
from visq.errors import VisqError
from visq.progress import Progress
from visq.runtime.segmenting import enlarged


@torch.no_grad()
def evaluate_masks(
    model: Any,
    pairs: Sequence[MaskPair],
    *,
    ignore: int | None = None,
    progress: Progress | None = None,
    show: Callable[[Pixels, Pixels, Pixels], None] | None = None,
) -> Segmentation:
    """Returns the confusion matrix of a network over images with masks, in their own sizes.

    Arguments:
        model: [1, C, H, W], normalized by `model.card.preprocess`, -> logits [1, classes, h, w]. A smaller map is
            enlarged bilinearly to the mask's size, by `visq.integer.resampling` for all backends.
        show: takes an image, its mask and the classes found, each [H, W, ...].
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
            classes = logits.shape[1]
            found = enlarged(logits[0].float().cpu().numpy(), *mask.shape).argmax(0)
            if not matrix.size:
                matrix = np.zeros((classes, classes), np.int64)
            matrix += confusion(found, mask, classes, ignore, pair.name)
            if show is not None:
                show(pixels, mask, found)
            task.advance(1)
    if not matrix.sum():
        raise VisqError("no pixel of these masks has a class that counts")
    return Segmentation(matrix, len(pairs))
