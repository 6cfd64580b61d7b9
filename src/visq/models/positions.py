"""Resamples position embeddings for another image size, as DeiT and Vim do for fine-tuning at a higher resolution."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visq.errors import VisqError
from visq.models.checkpoint import read_checkpoint
from visq.models.geometry import differences
from visq.models.vim import VisionMamba


def resize_positions(pos_embed: Tensor, patches: int, class_token: bool = True) -> Tensor:
    """Resamples positions [1, M + 1, E] bicubically to `patches` + 1 tokens; the middle one, the class token, is kept.

    Without a class token, positions are [1, M, E]. Raises VisqError unless both M and `patches` are squares.
    """
    tokens, width = pos_embed.shape[1:]
    count = tokens - class_token
    old, new = isqrt(max(count, 0)), isqrt(patches)
    if old == 0 or old * old != count or new * new != patches:
        token = " + 1: both must be squares and a class token" if class_token else ": both must be squares"
        raise VisqError(f"positions of {tokens} tokens cannot become {patches}{token}")
    middle, last = (count // 2, count // 2 + 1) if class_token else (count, count)
    grid = torch.cat([pos_embed[:, :middle], pos_embed[:, last:]], dim=1)
    grid = grid.reshape(1, old, old, width).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    half = patches // 2
    return torch.cat([resized[:, :half], pos_embed[:, middle:last], resized[:, half:]], dim=1)


def at_resolution(tensors: dict[str, Tensor], native: Any, config: Any) -> tuple[dict[str, Tensor], str | None]:
    """Returns a checkpoint's tensors for the image size of `config`, and a remark where they had to be resampled.

    Arguments:
        native: the geometry that the weights were trained for; it differs from `config` in the image size at most.
    """
    old, new = getattr(native, "image_size", None), getattr(config, "image_size", None)
    if old == new:
        return tensors, None
    trained = f"the weights were trained for images of {old} pixels and run at {new}, as asked"
    if not hasattr(config, "num_patches") or native.num_patches == config.num_patches or "pos_embed" not in tensors:
        return tensors, trained
    wanted: int = config.num_patches
    before, after = isqrt(native.num_patches), isqrt(wanted)
    resampled = {**tensors, "pos_embed": resize_positions(tensors["pos_embed"], wanted, config.num_tokens > wanted)}
    return resampled, f"{trained}: positions were resampled bicubically from {before} x {before} to {after} x {after}"


def load_other_resolution(model: VisionMamba, checkpoint: Path | str) -> None:
    """Loads a checkpoint of the same network at another image size into `model`, its position embedding resampled.

    Raises VisqError when anything but the number of tokens differs.
    """
    read = read_checkpoint(checkpoint)
    weights = dict(read.tensors)
    if weights.get("pos_embed", torch.empty(0)).ndim != 3:
        raise VisqError(f"{read.path}: no position embedding to interpolate")
    weights["pos_embed"] = resize_positions(weights["pos_embed"], model.config.num_patches)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = differences(expected, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    if wrong:
        raise VisqError(f"{read.path}: is not the same network at another resolution: {wrong}")
    model.load_state_dict(weights)
