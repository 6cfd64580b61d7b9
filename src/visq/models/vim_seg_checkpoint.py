"""Finds the geometry of a checkpoint of Vim for segmentation, and registers the family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any

from visq.data import Preprocess
from visq.errors import VisqError
from visq.models.family import DIRECTION, LAYER, Family, Shapes, expansion, need_tensors, register_family
from visq.models.vim_seg import VimSeg, VimSegConfig


def infer_vim_seg(shapes: Shapes, hints: Mapping[str, Any], known: Iterable[Any] = ()) -> VimSegConfig:
    """Returns the geometry of a checkpoint; `stride` is a hint, by default patches do not overlap.

    Raises VisqError unless it has a Vim's layers, positions without a class token, and the light head.
    """
    mixer = "layers.0.mixer."
    telling = {
        "positions.pos_embed": 3,
        "patch_embed.proj.weight": 4,
        f"{mixer}in_proj.weight": 2,
        f"{mixer}A_b_log": 2,
        f"{mixer}conv1d.weight": 3,
        "outnorms.0.weight": 1,
        "decode_head.laterals.0.weight": 2,
        "decode_head.classify.weight": 2,
    }
    need_tensors("a Vim for segmentation", shapes, telling)
    embed_dim, expand = expansion("a Vim for segmentation", shapes, f"{mixer}in_proj.weight")
    patch, positions = shapes["patch_embed.proj.weight"][2], shapes["positions.pos_embed"][1]
    grid = isqrt(positions)
    if grid < 1 or grid * grid != positions:
        raise VisqError(f"not a Vim for segmentation: its {positions} positions are no square map")
    return VimSegConfig(
        grid=grid,
        patch_size=patch,
        stride=hints.get("stride") or patch,
        channels=shapes["patch_embed.proj.weight"][1],
        embed_dim=embed_dim,
        depth=len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
        d_state=shapes[f"{mixer}A_b_log"][1],
        expand=expand,
        d_conv=shapes[f"{mixer}conv1d.weight"][2],
        maps=len({name.split(".")[1] for name in shapes if name.startswith("outnorms.")}),
        head_dim=shapes["decode_head.laterals.0.weight"][0],
        num_classes=shapes["decode_head.classify.weight"][0],
    )


def preprocess(config: VimSegConfig) -> Preprocess:
    """Returns the transform for calibration: crops of the size that positions were trained for."""
    if config.channels == 3:
        return Preprocess.imagenet(config.side, config.side)
    middle = (0.5,) * config.channels
    return Preprocess(config.side, config.side, middle, middle, channels=config.channels)  # type: ignore[arg-type]


VIM_SEG = register_family(
    Family(
        "vim_seg",
        "Vim for segmentation",
        VimSegConfig,
        VimSeg,
        infer_vim_seg,
        preprocess=preprocess,
        any_size=True,
        per_pixel=True,
        # The head's modules are of that role already (`vmamba_seg`).
        repeats=(LAYER, r"(?<=norms|erals)\.\d+", DIRECTION),
    )
)
