"""Finds the geometry of a MambaVision checkpoint, and registers the family and its published models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from visq.errors import VisqError
from visq.models.family import Family, Shapes, need_tensors, override, register_family
from visq.models.mambavision import CONV_LEVELS, MambaVision, MambaVisionConfig, fold_norms

_BLOCK = re.compile(r"levels\.(\d+)\.blocks\.(\d+)\.")
#: Fields that no tensor's shape tells.
_UNTOLD = ("image_size", "num_heads", "windows")
_SUPPORTED = (
    "supported: two levels of convolutions, then levels whose last half is attention, without q_norm and k_norm"
)


def infer_mambavision(shapes: Shapes, hints: Mapping[str, Any], known: Iterable[Any] = ()) -> MambaVisionConfig:
    """Returns the geometry of a checkpoint.

    Arguments:
        shapes: name -> shape of its tensors.
        hints: `image_size`, `num_heads` and `windows` where they are known, because no tensor tells them.
        known: geometries that the three are taken from when everything else is the same. Otherwise a head has about 48
            channels, and a window is the whole map, as in all published models.

    Raises VisqError when the tensors are not those of a MambaVision, or of a variant that is not supported.
    """
    mixer = f"levels.{CONV_LEVELS}.blocks.0."
    telling = {
        "patch_embed.conv_down.0.weight": 4,
        "patch_embed.conv_down.3.weight": 4,
        f"{mixer}mixer.A_log": 2,
        f"{mixer}mixer.in_proj.weight": 2,
        f"{mixer}mixer.conv1d_x.weight": 3,
        f"{mixer}mlp.fc1.weight": 2,
        "head.weight": 2,
    }
    need_tensors("a MambaVision checkpoint", shapes, telling)
    if any(0 in shapes[name] for name in telling):
        raise VisqError("not a MambaVision checkpoint: a tensor without values")
    stem_dim, channels = shapes["patch_embed.conv_down.0.weight"][:2]
    embed_dim = shapes["patch_embed.conv_down.3.weight"][0]
    inner, dim = shapes[f"{mixer}mixer.in_proj.weight"]
    hidden = shapes[f"{mixer}mlp.fc1.weight"][0]
    depths = _depths(shapes)
    if inner % dim or hidden % dim or dim != embed_dim * 2**CONV_LEVELS:
        raise VisqError(
            f"this MambaVision variant is not supported: level {CONV_LEVELS} has {dim} channels; {_SUPPORTED}"
        )
    levels = len(depths) - CONV_LEVELS
    size = hints.get("image_size") or MambaVisionConfig.image_size
    config = MambaVisionConfig(
        image_size=size,
        channels=channels,
        stem_dim=stem_dim,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=tuple(_heads(embed_dim * 2 ** (CONV_LEVELS + i)) for i in range(levels)),
        windows=tuple(-(-size // 2 ** (CONV_LEVELS + 2 + i)) for i in range(levels)),
        d_state=shapes[f"{mixer}mixer.A_log"][1],
        d_conv=shapes[f"{mixer}mixer.conv1d_x.weight"][2],
        expand=inner // dim,
        mlp_ratio=hidden // dim,
        layer_scale=1e-5 if f"{mixer}gamma_1" in shapes else 0.0,
        num_classes=shapes["head.weight"][0],
        norm="batch" if "patch_embed.conv_down.1.running_mean" in shapes else "folded",
    )
    for other in known:
        told = {name: getattr(other, name) for name in _UNTOLD}
        if (
            replace(config, **told) == replace(other, drop_path=0.0)
            and hints.get("image_size", other.image_size) == other.image_size
        ):
            config = replace(config, **told)
            break
    return override(config, {name: hints[name] for name in _UNTOLD if hints.get(name)})


def _depths(shapes: Shapes) -> tuple[int, ...]:
    """Returns the blocks of each level. Raises VisqError where a block is not of the kind that its place has."""
    blocks = {(int(match[1]), int(match[2])) for name in shapes if (match := _BLOCK.match(name))}
    sizes = Counter(level for level, _ in blocks)
    depths = tuple(sizes[level] for level in sorted(sizes))
    fine = sorted(sizes) == list(range(len(depths))) and len(depths) > CONV_LEVELS
    for level, block in blocks if fine else ():
        name = f"levels.{level}.blocks.{block}."
        first_attention = (depths[level] + 1) // 2
        kind = "conv1" if level < CONV_LEVELS else "mixer.qkv" if block >= first_attention else "mixer.x_proj"
        fine &= f"{name}{kind}.weight" in shapes
        fine &= f"{name}gamma" not in shapes and f"{name}mixer.q_norm.weight" not in shapes
    if not fine:
        raise VisqError(f"this MambaVision variant is not supported; {_SUPPORTED}")
    return depths


def _heads(dim: int) -> int:
    """Returns the power of two of heads that brings a head nearest to 48 channels, among those that divide `dim`."""
    choices = [2**i for i in range(8) if dim % 2**i == 0]
    return min(choices, key=lambda heads: abs(dim / heads - 48))


MAMBAVISION = register_family(
    Family(
        "mambavision",
        "MambaVision",
        MambaVisionConfig,
        MambaVision,
        infer_mambavision,
        fold=fold_norms,
        roles={
            "linears": ("?*.mixer.qkv", "?*.mixer.proj", "?*.mlp.fc*"),
            "ends": ("?*.conv1", "?*.conv2", "?*.reduction.*", "?patch_embed.conv_down.*"),
            "activations": ("?*.mlp.act",),
        },
        repeats=(r"^levels\.\d+\.(blocks\.\d+\.)?(mixer\.)?",),
    )
)
