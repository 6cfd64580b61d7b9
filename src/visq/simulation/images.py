"""Makes the simulation refuse the images that the engine refuses (`visq.integer.images`)."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from visq.errors import VisqError, need
from visq.integer.images import LARGEST_PIXEL, NOT_FINITE, TOO_LARGE
from visq.quant.quantizer import Quantizer, SiteQuantizer, StateQuantizer
from visq.quant.site import named_sites

Network = TypeVar("Network", bound=nn.Module)


def refuse_bad_images(model: Network) -> Network:
    """Makes a network raise VisqError for images that the engine refuses, and returns it.

    These are images [B, C, H, W] that are not finite or beyond LARGEST_PIXEL, and, where a site has a scale for each
    position, those of another size than calibration had.
    """
    if _check not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_check)
    return model


def accept_all_images(model: nn.Module) -> None:
    """Undoes `refuse_bad_images`."""
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is _check]:
        del model._forward_pre_hooks[key]


@torch.no_grad()
def _check(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    for images in inputs:
        if isinstance(images, Tensor) and images.numel() and not images.is_meta:
            largest = images.abs().max()  # NaN if any value is
            need(torch.isfinite(largest), NOT_FINITE)
            need(largest <= LARGEST_PIXEL, TOO_LARGE)
            _check_size(module, images)


def _check_size(module: nn.Module, images: Tensor) -> None:
    """Raises VisqError for another size than calibration had, if the network takes any and its sites do not."""
    card, check = getattr(module, "card", None), getattr(module, "check_images", None)
    if card is None or getattr(check, "size", None) is not None:  # the network refuses other sizes itself
        return
    side = card.preprocess.image_size
    if tuple(images.shape[2:]) == (side, side):
        return
    for name, site in named_sites(module):
        if has_positions(site.quantizer):
            found = " x ".join(map(str, images.shape[2:]))
            raise VisqError(
                f"the network was quantized for images of {side} x {side} pixels, not {found}: "
                f"{name} has a scale for each position; another size needs its own"
            )


def has_positions(quantizer: SiteQuantizer | None) -> bool:
    """Returns whether a quantizer has a scale for each token or step of a sequence."""
    if isinstance(quantizer, StateQuantizer):
        return quantizer.step.numel() > 1
    return isinstance(quantizer, Quantizer) and quantizer.axis == -2
