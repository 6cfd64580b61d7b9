"""Translates between EfficientVMamba's official checkpoints and our network, and registers the family.

Official files count the parts of a level of inverted residuals (`layers.2.1.` is its first block), keep the four scans
in one tensor each, and hold a convolution of one position as [O, I, 1, 1].
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from visq.errors import VisqError
from visq.models.directions import split_directions, stack_directions
from visq.models.efficientvmamba import SCAN_LEVELS, EfficientVMamba, EfficientVMambaConfig, fold_norms
from visq.models.family import Family, Shapes, Tensors, need_tensors, register_family

#: Pairs of an official name and ours.
_ENDS = (
    ("patch_embed.0.", "patch_embed.conv."),
    ("patch_embed.2.", "patch_embed.norm."),
    ("classifier.norm.", "norm."),
    ("classifier.head.", "head."),
)
_COUNTED = re.compile(r"layers\.(\d+)\.(\d+)\.")
_POINTWISE = re.compile(r"\.(conv_branch\.3|conv_pw\.0|conv_pw2\.0|se\.conv_reduce|se\.conv_expand)\.weight$")
_BLOCK = re.compile(r"layers\.(\d+)\.(?:blocks\.)?(\d+)\.(norm|conv_pw)\.")
#: Linears of a gate, of both kinds.
_GATES = ("global_reduce", "channel_select", "conv_reduce", "conv_expand")
#: How an official file counts: a permutation in front of the blocks and one behind them, then the downsampling.
_BEFORE, _AROUND = 1, 2


def unpack(config: EfficientVMambaConfig, tensors: Tensors) -> Tensors:
    """Returns the network's parameters of official tensors."""
    result: Tensors = {}
    for name, tensor in split_directions(tensors).items():
        if _POINTWISE.search(name) and tensor.ndim == 4:
            tensor = tensor.flatten(1)
        result[_ours(name)] = tensor
    return result


def pack(config: EfficientVMambaConfig, tensors: Tensors) -> Tensors:
    """Returns the official tensors of the network's parameters."""
    result: Tensors = {}
    for name, tensor in stack_directions(tensors).items():
        if _POINTWISE.search(name):
            tensor = tensor[:, :, None, None]
        result[_theirs(name, config)] = tensor
    return result


def _ours(name: str) -> str:
    for theirs, ours in _ENDS:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    match = _COUNTED.match(name)
    if match is None:
        return name
    rest = name[match.end() :]
    part = "downsample" if rest.startswith(("norm.", "reduction.")) else f"blocks.{int(match[2]) - _BEFORE}"
    return f"layers.{match[1]}.{part}.{rest}"


def _theirs(name: str, config: EfficientVMambaConfig) -> str:
    for theirs, ours in _ENDS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    start, level, part, rest = name.split(".", 3)
    if int(level) < SCAN_LEVELS:
        return name
    if part == "downsample":
        return f"{start}.{level}.{config.depths[int(level)] + _AROUND}.{rest}"
    block, rest = rest.split(".", 1)
    return f"{start}.{level}.{int(block) + _BEFORE}.{rest}"


def infer_efficientvmamba(shapes: Shapes, hints: Mapping[str, Any], known: Iterable[Any] = ()) -> EfficientVMambaConfig:
    """Returns the geometry of a checkpoint.

    Arguments:
        shapes: name -> shape of its tensors.
        hints: `image_size` where it is known, because no tensor tells it.
        known: geometries whose image size is taken when they are the same otherwise and there is no hint.

    Raises VisqError when the tensors are not those of an EfficientVMamba, or of a variant that is not supported.
    """
    first, later = "layers.0.blocks.0.", f"layers.{SCAN_LEVELS}.1."
    telling = {
        f"{first}conv_branch.3.weight": 4,
        f"{first}se.global_reduce.weight": 2,
        f"{first}op.A_logs": 2,
        f"{first}op.dt_projs_weight": 3,
        f"{first}op.in_proj.weight": 2,
        f"{later}conv_pw.0.weight": 4,
        f"{later}se.conv_reduce.weight": 4,
        "classifier.head.weight": 2,
        "patch_embed.0.weight": 4,
    }
    need_tensors("an EfficientVMamba checkpoint", shapes, telling)
    if any(0 in shapes[name] for name in telling):
        raise VisqError("not an EfficientVMamba checkpoint: a tensor without values")
    dim, reduced = shapes["patch_embed.0.weight"][0], shapes[f"{first}se.global_reduce.weight"][0]
    rows, inner = shapes[f"{first}op.in_proj.weight"][0], shapes[f"{first}op.dt_projs_weight"][1]
    if rows != 2 * inner or inner % dim:
        raise VisqError(
            f"this EfficientVMamba variant is not supported: in_proj makes {rows} channels, the scan has {inner}; "
            "supported: scans of whole multiples of the channels, with a gate"
        )
    depths, dims = _levels(shapes)
    hidden, later_dim = shapes[f"{later}conv_pw.0.weight"][:2]
    mlp = shapes.get(f"{first}mlp.fc1.weight")
    config = EfficientVMambaConfig(
        channels=shapes["patch_embed.0.weight"][1],
        dims=dims,
        depths=depths,
        d_state=shapes[f"{first}op.A_logs"][1],
        expand=inner // dim,
        mlp_ratio=0 if mlp is None else mlp[0] // dim,
        hidden_ratio=max(1, hidden // later_dim),
        reduction=max(1, dim // reduced),
        num_classes=shapes["classifier.head.weight"][0],
        norm="batch" if f"{first}conv_branch.1.running_mean" in shapes else "folded",
    )
    sizes = [other.image_size for other in known if replace(other, image_size=224, drop_path=0.0) == config]
    return replace(config, image_size=hints.get("image_size") or (sizes or [config.image_size])[0])


def _levels(shapes: Shapes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns depths and channels of the levels. Raises VisqError where a level is not of the kind its place has."""
    blocks = {(int(match[1]), int(match[2]), match[3]) for name in shapes if (match := _BLOCK.match(name))}
    blocks = {(level, block, kind) for level, block, kind in blocks if level < SCAN_LEVELS or kind == "conv_pw"}
    depths = Counter(level for level, _, _ in blocks)
    fine = sorted(depths) == list(range(len(depths))) and len(depths) > SCAN_LEVELS
    fine &= all(kind == ("norm" if level < SCAN_LEVELS else "conv_pw") for level, _, kind in blocks)
    dims = []
    for level in sorted(depths) if fine else ():
        name = f"layers.{level}.blocks.0.norm.weight" if level < SCAN_LEVELS else f"layers.{level}.1.conv_pw.0.weight"
        fine &= name in shapes
        dims.append(shapes[name][-1 if level < SCAN_LEVELS else 1] if fine else 0)
    if not fine:
        raise VisqError(
            f"this EfficientVMamba variant is not supported; supported: {SCAN_LEVELS} levels with scans, then levels "
            "of inverted residuals"
        )
    return tuple(depths[level] for level in sorted(depths)), tuple(dims)


EFFICIENTVMAMBA = register_family(
    Family(
        "efficientvmamba",
        "EfficientVMamba",
        EfficientVMambaConfig,
        EfficientVMamba,
        infer_efficientvmamba,
        unpack=unpack,
        pack=pack,
        fold=fold_norms,
        roles={
            "linears": ("?*.mlp.fc*", "?*.reduction", "?*.conv_branch.3", "?*.conv_pw.0", "?*.conv_pw2.0"),
            "depthwise": ("?*.conv_branch.0", "?*.conv_dw.0"),
            # A gate is made of one token, so that its linears cannot have scales by token.
            "ends": ("?*.conv", *(f"?*.se.{name}" for name in _GATES)),
            "activations": ("?*.mlp.act", "?*.conv_dw.2", "?*.se.sigmoid"),
        },
    )
)
