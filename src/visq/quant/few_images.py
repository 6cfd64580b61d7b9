"""Widens ranges that rest on few calibration images towards the range of the whole tensor.

The next image leaves the range of n images with probability 1 / (n + 1), and what other channels or tokens reach bounds
by how much. Eight bits of the tensor's whole range are enough for any tensor, so that few images need no finer step.
docs/methods/visq.md has the measurements.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visq.quant.quantizer import Quantizer

#: With this many images ranges stand as they were found.
ENOUGH = 128
#: Up to this many images no step is finer than that of 8 bits over the tensor's whole range.
COARSE = 4
#: A range found in one image grows by this share of itself.
MARGIN = 0.5


def doubt(images: int) -> float:
    """Returns 1 for one image, about 1 / n for n images, and 0 from `ENOUGH` on."""
    return max(0.0, (1 / images - 1 / ENOUGH) / (1 - 1 / ENOUGH))


def share(images: int, bits: int) -> float:
    """Returns the least that the range of a channel or token is, as a share of the tensor's widest."""
    return min(1.0, COARSE * doubt(images)) * 2.0 ** (bits - 8)


def widened_scales(scale: Tensor, images: int, bits: int) -> Tensor:
    """Returns scales [n] > 0 of symmetric ranges, widened; with enough images the same bits."""
    grown = 1 + MARGIN * doubt(images)
    return scale if grown == 1 else torch.maximum(scale, share(images, bits) * scale.max()) * grown


def widened(quantizer: Quantizer, images: int) -> Quantizer:
    """Returns an activation's quantizer with wider ranges; itself with enough images or with fewer scales than channels
    or tokens."""
    spec, grown = quantizer.spec, 1 + MARGIN * doubt(images)
    if grown == 1 or spec.granularity.kind not in ("token", "channel"):
        return quantizer
    scale, zero_point = quantizer.scale, quantizer.zero_point
    if zero_point is None:
        scale = widened_scales(scale, images, spec.bits)
    else:
        least = share(images, spec.bits)
        low, high = ((code - zero_point) * scale for code in (spec.qmin, spec.qmax))
        low, high = torch.minimum(low, least * low.min()) * grown, torch.maximum(high, least * high.max()) * grown
        scale = (high - low) / (spec.qmax - spec.qmin)
        zero_point = (spec.qmin - low / scale).round().clamp(spec.qmin, spec.qmax)
    axis, smooth, table = quantizer.axis, quantizer.smooth, quantizer.table
    return Quantizer(spec, scale, zero_point, axis=axis, smooth=smooth, table=table)
