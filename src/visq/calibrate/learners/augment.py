"""Other views of calibration images, for learners that follow FP32 and use no labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visq.errors import VisqError

#: The least side of a part that is cut out [pixels].
LEAST = 8


def check_views(learner: str, mirror: float, crop: float) -> None:
    """Raises VisqError for a share outside [0, 1], or a crop that could leave nothing."""
    if not (0 <= mirror <= 1 and 0 <= crop < 1):
        raise VisqError(f"{learner} needs 0 <= mirror <= 1 and 0 <= crop < 1, got {mirror}, {crop}")


def views(images: Tensor, mirror: float, crop: float, generator: torch.Generator) -> Tensor:
    """Returns images of the same size [B, C, H, W], changed at random.

    Arguments:
        mirror: the probability that an image is mirrored.
        crop: the largest share of the area that is cut away; what is left keeps its proportions, lies anywhere, and is
            enlarged to the image's size.
        generator: on the CPU, so that every device draws the same. Shares of 0 change nothing and draw nothing.
    """
    if mirror:
        mirrored = torch.rand(len(images), generator=generator) < mirror
        images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
    if crop:
        images = torch.stack([_part(image, crop, generator) for image in images])
    return images


def _part(image: Tensor, crop: float, generator: torch.Generator) -> Tensor:
    sides = image.shape[1:]
    share = (1 - crop * float(torch.rand(1, generator=generator))) ** 0.5
    height, width = (min(side, max(LEAST, round(side * share))) for side in sides)
    top, left = (
        int(torch.randint(0, side - part + 1, (1,), generator=generator))
        for side, part in zip(sides, (height, width), strict=True)
    )
    part = image[None, :, top : top + height, left : left + width]
    return F.interpolate(part, tuple(sides), mode="bilinear", antialias=True, align_corners=False)[0]
