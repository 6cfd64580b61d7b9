"""Makes the simulation refuse the images that the engine refuses (`visq.integer.images`)."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from visq.errors import need
from visq.integer.images import LARGEST_PIXEL, NOT_FINITE, TOO_LARGE

Network = TypeVar("Network", bound=nn.Module)


def refuse_bad_images(model: Network) -> Network:
    """Makes a network raise VisqError for images [B, C, H, W] not finite or beyond LARGEST_PIXEL. Returns it."""
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
