"""Ranges that a few calibration images do not support are widened towards the range of the whole tensor.

A scale for each channel or token rests on one image's worth of values an image. The next image exceeds the largest of n
with probability 1 / (n + 1), and nothing bounds by how much but what other channels or tokens reach. So a range is
at least `share(n)` of the widest one of its tensor, with a margin that shrinks as fast.
docs/methods/visq.md has the measurements.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visq.quant.quantizer import Quantizer

#: With this many images ranges stand as they were found.
ENOUGH = 128
#: What a range found in one image is widened by, as a share of itself.
MARGIN = 0.5


def share(images: int) -> float:
    """Returns how much of the tensor's range is the least for each channel or token: 1 for one image, about 1 / n, 0
    from `ENOUGH` images on."""
    return max(0.0, (1 / images - 1 / ENOUGH) / (1 - 1 / ENOUGH))


def widened_scales(scale: Tensor, images: int) -> Tensor:
    """Returns scales [n] > 0 of a symmetric range, widened; with enough images the same bits."""
    part = share(images)
    return scale if part == 0 else torch.maximum(scale, part * scale.max()) * (1 + MARGIN * part)


def widened(quantizer: Quantizer, images: int) -> Quantizer:
    """Returns an activation's quantizer with its ranges widened; with enough images, or where channels or tokens share
    scales, itself."""
    spec, part = quantizer.spec, share(images)
    if part == 0 or spec.granularity.kind not in ("token", "channel"):
        return quantizer
    scale, zero_point = quantizer.scale, quantizer.zero_point
    if zero_point is None:
        scale = widened_scales(scale, images)
    else:
        low, high = ((code - zero_point) * scale for code in (spec.qmin, spec.qmax))
        low, high = torch.minimum(low, part * low.min()), torch.maximum(high, part * high.max())
        scale = (high - low) * (1 + MARGIN * part) / (spec.qmax - spec.qmin)
        zero_point = (spec.qmin - low * (1 + MARGIN * part) / scale).round().clamp(spec.qmin, spec.qmax)
    axis, smooth, table = quantizer.axis, quantizer.smooth, quantizer.table
    return Quantizer(spec, scale, zero_point, axis=axis, smooth=smooth, table=table)
