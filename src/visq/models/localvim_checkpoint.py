"""Finds the geometry of a LocalVim checkpoint, translates its names, and registers the family."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from visq.errors import VisqError
from visq.models.family import Family, Shapes, Tensors, expansion, need_tensors, register_family
from visq.models.localvim import LocalVim, LocalVimConfig, Rope

#: A parameter of one direction: `mixer.conv1d_2.weight` is ours as `mixer.directions.2.conv1d.weight`.
_THEIRS = re.compile(r"\.mixer\.(A_log|D|conv1d|x_proj|dt_proj)_(\d+)(?=\.|$)")
_OURS = re.compile(r"\.mixer\.directions\.(\d+)\.(A_log|D|conv1d|x_proj|dt_proj)(?=\.|$)")
#: What a checkpoint of so many directions a layer is taken to scan where nothing tells: the public code's plain choice.
GUESS = ("h", "h_flip", "w2", "w2_flip", "v", "v_flip", "w7", "w7_flip")


def unpack(config: LocalVimConfig, tensors: Tensors) -> Tensors:
    """Returns the network's parameters of official tensors; rotations for another image size are made anew."""
    result = {_THEIRS.sub(r".mixer.directions.\2.\1", name): tensor for name, tensor in tensors.items()}
    if config.variant == "rope" and len(result.get("rope.freqs_cos", ())) != config.num_tokens:
        result |= {f"rope.{name}": tensor.detach() for name, tensor in Rope(config).named_parameters()}
    return result


def pack(config: LocalVimConfig, tensors: Tensors) -> Tensors:
    """Returns the official tensors of the network's parameters."""
    return {_OURS.sub(r".mixer.\2_\1", name): tensor for name, tensor in tensors.items()}


def infer_localvim(shapes: Shapes, hints: Mapping[str, Any], known: Iterable[Any] = ()) -> LocalVimConfig:
    """Returns the geometry of a checkpoint.

    Arguments:
        shapes: name -> shape of its tensors, under their official names.
        hints: `image_size` and `directions` where they are known; no tensor tells the directions.
        known: geometries whose directions are taken where everything else is the same. Otherwise they are `GUESS`.

    Raises VisqError when the tensors are not those of a LocalVim, or of a variant that is not supported.
    """
    mixer = "layers.0.mixer."
    telling = {
        "pos_embed": 3,
        "patch_embed.proj.weight": 4,
        f"{mixer}in_proj.weight": 2,
        f"{mixer}A_log_0": 2,
        f"{mixer}conv1d_0.weight": 3,
        f"{mixer}attn.global_reduce.weight": 2,
        "head.weight": 2,
    }
    need_tensors("a LocalVim checkpoint", shapes, telling)
    if f"{mixer}multi_scan.weights" in shapes:
        raise VisqError("this LocalVim is the network of the search for directions; give the one that it found")
    embed_dim, expand = expansion("a LocalVim checkpoint", shapes, f"{mixer}in_proj.weight")
    scans = sum(re.fullmatch(rf"{re.escape(mixer)}A_log_\d+", name) is not None for name in shapes)
    if scans > len(GUESS):
        raise VisqError(f"this LocalVim variant is not supported: {scans} scans in a layer; {len(GUESS)} is the most")
    patch = shapes["patch_embed.proj.weight"][2]
    variant = "rope" if "rope.freqs_cos" in shapes else "class_token" if "cls_token" in shapes else "plain"
    patches = shapes["pos_embed"][1] - (variant == "class_token")
    if patches < 1 or patch < 1 or isqrt(patches) ** 2 != patches or ("cls_token" in shapes and variant == "rope"):
        raise VisqError(
            f"this LocalVim variant is not supported: {shapes['pos_embed'][1]} positions; square maps are, with a "
            "class token in the middle or rotations, not both"
        )
    size = isqrt(patches) * patch
    asked = hints.get("image_size") or size
    if asked != size:
        raise VisqError(f"its {patches} patches of {patch} pixels are those of {size} pixels, not {asked}")
    config = LocalVimConfig(
        image_size=size,
        patch_size=patch,
        channels=shapes["patch_embed.proj.weight"][1],
        embed_dim=embed_dim,
        depth=len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
        d_state=shapes[f"{mixer}A_log_0"][1],
        expand=expand,
        d_conv=shapes[f"{mixer}conv1d_0.weight"][2],
        reduced=shapes[f"{mixer}attn.global_reduce.weight"][0],
        directions=(" ".join(GUESS[:scans]),),
        variant=variant,
        num_classes=shapes["head.weight"][0],
    )
    if hints.get("directions"):
        return replace(config, directions=tuple(hints["directions"]))
    for other in known:
        if replace(config, directions=other.directions) == replace(other, drop_path=0.0):
            return replace(config, directions=other.directions)
    return config


LOCALVIM = register_family(
    Family(
        "localvim",
        "LocalVim",
        LocalVimConfig,
        LocalVim,
        infer_localvim,
        unpack=unpack,
        pack=pack,
        roles={
            # A gate is made of one token, so that its linears cannot have scales by token.
            "ends": ("?*.attn.global_reduce", "?*.attn.channel_select"),
            "activations": ("?*.attn.act", "?*.attn.sigmoid"),
        },
    )
)
