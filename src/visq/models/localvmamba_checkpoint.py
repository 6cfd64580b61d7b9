"""Finds the geometry of a LocalVMamba checkpoint, translates its names, and registers the family."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from visq.errors import VisqError
from visq.models.directions import split_directions, stack_directions
from visq.models.family import Family, Shapes, Tensors, need_tensors, register_family
from visq.models.localvim_checkpoint import GUESS
from visq.models.localvmamba import LocalVMamba, LocalVMambaConfig

#: (official part of a name, ours)
_NAMES = (
    ("patch_embed.0.", "patch_embed.conv."),
    ("patch_embed.2.", "patch_embed.norm."),
    ("classifier.norm.", "norm."),
    ("classifier.head.", "head."),
)
_GATE = (".op.multi_scan.attn.", ".op.attn.")


def unpack(config: LocalVMambaConfig, tensors: Tensors) -> Tensors:
    """Returns the network's parameters of official tensors."""
    split = split_directions(tensors, scans(config))
    return {_renamed(name.replace(*_GATE), _NAMES): tensor for name, tensor in split.items()}


def pack(config: LocalVMambaConfig, tensors: Tensors) -> Tensors:
    """Returns the official tensors of the network's parameters."""
    back = tuple((ours, theirs) for theirs, ours in _NAMES)
    stacked = stack_directions(tensors)
    return {_renamed(name, back).replace(_GATE[1], _GATE[0]): tensor for name, tensor in stacked.items()}


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def scans(config: LocalVMambaConfig) -> int:
    """Returns the directions of a block. Raises VisqError where blocks have different numbers."""
    counts = {len(line.split()) for line in config.directions}
    if len(counts) > 1:
        raise VisqError("this LocalVMamba variant is not supported: blocks of different numbers of directions")
    return counts.pop()


def infer_localvmamba(shapes: Shapes, hints: Mapping[str, Any], known: Iterable[Any] = ()) -> LocalVMambaConfig:
    """Returns the geometry of a checkpoint.

    Arguments:
        shapes: name -> shape of its tensors, under their official names.
        hints: `image_size` and `directions` where they are known, because no tensor tells them.
        known: geometries that the two are taken from where everything else is the same. Otherwise the directions are
            the first of `GUESS`.

    Raises VisqError when the tensors are not those of a LocalVMamba, or of a variant that is not supported.
    """
    op = "layers.0.blocks.0.op."
    telling = {
        "patch_embed.0.weight": 4,
        f"{op}in_proj.weight": 2,
        f"{op}dt_projs_weight": 3,
        f"{op}A_logs": 2,
        f"{op}out_norm.weight": 1,
        f"{op}multi_scan.attn.global_reduce.weight": 2,
        "classifier.head.weight": 2,
    }
    need_tensors("a LocalVMamba checkpoint", shapes, telling)
    if f"{op}multi_scan.weights" in shapes:
        raise VisqError("this LocalVMamba is the network of the search for directions; give the one that it found")
    rows, dim = shapes[f"{op}in_proj.weight"]
    count, inner = shapes[f"{op}dt_projs_weight"][:2]
    reduced = shapes[f"{op}multi_scan.attn.global_reduce.weight"][0]
    if 0 in (dim, inner, reduced) or rows != 2 * inner or inner % dim or not 0 < count <= len(GUESS):
        raise VisqError(
            f"this LocalVMamba variant is not supported: {dim} channels, {rows} rows of in_proj, {count} scans of "
            f"{inner} channels"
        )
    blocks = {(match[1], match[2]) for name in shapes if (match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name))}
    depths = Counter(int(level) for level, _ in blocks)
    config = LocalVMambaConfig(
        channels=shapes["patch_embed.0.weight"][1],
        embed_dim=dim,
        depths=tuple(depths[level] for level in sorted(depths)),
        d_state=shapes[f"{op}A_logs"][1],
        expand=inner // dim,
        reduction=max(1, inner // reduced),
        directions=(" ".join(GUESS[:count]),),
        num_classes=shapes["classifier.head.weight"][0],
    )
    untold = ("image_size", "directions")
    told: dict[str, Any] = {
        name: tuple(hints[name]) if name == "directions" else hints[name] for name in untold if hints.get(name)
    }
    for other in known:
        same = {name: getattr(other, name) for name in untold}
        fits = all(same[name] == value for name, value in told.items())
        if fits and replace(config, **same) == replace(other, drop_path=0.0):
            return replace(config, **same)
    return replace(config, **told)


LOCALVMAMBA = register_family(
    Family(
        "localvmamba",
        "LocalVMamba",
        LocalVMambaConfig,
        LocalVMamba,
        infer_localvmamba,
        unpack=unpack,
        pack=pack,
        roles={
            "linears": ("?*.reduction",),
            # A gate is made of one token, so that its linears cannot have scales by token.
            "ends": ("?patch_embed.conv", "?*.attn.global_reduce", "?*.attn.channel_select"),
            "activations": ("?*.attn.act", "?*.attn.sigmoid"),
        },
    )
)
