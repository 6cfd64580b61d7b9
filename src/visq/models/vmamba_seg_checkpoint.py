"""Translates between checkpoints of VMamba's segmentation and our network: names, stacked directions, geometry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from visq.data import Preprocess
from visq.errors import VisqError
from visq.models.family import DIRECTION, Family, Shapes, Tensors, register_family
from visq.models.vmamba_checkpoint import infer_vmamba
from visq.models.vmamba_checkpoint import pack as pack_backbone
from visq.models.vmamba_checkpoint import unpack as unpack_backbone
from visq.models.vmamba_seg import VMambaSeg, VMambaSegConfig

_BACKBONE = "backbone."


def _apart(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the tensors of the backbone without its prefix, and all others."""
    inside = {n.removeprefix(_BACKBONE): t for n, t in tensors.items() if n.startswith(_BACKBONE)}
    return inside, {n: t for n, t in tensors.items() if not n.startswith(_BACKBONE)}


def unpack(config: VMambaSegConfig, tensors: Tensors) -> Tensors:
    """Returns the network's parameters of official tensors."""
    inside, rest = _apart(tensors)
    inside = {re.sub(r"^outnorm(\d+)\.", r"outnorms.\1.", name): tensor for name, tensor in inside.items()}
    return {_BACKBONE + n: t for n, t in unpack_backbone(config.backbone, inside).items()} | rest


def pack(config: VMambaSegConfig, tensors: Tensors) -> Tensors:
    """Returns the official tensors, in their latest names, of the network's parameters."""
    inside, rest = _apart(tensors)
    inside = pack_backbone(config.backbone, inside)
    inside = {re.sub(r"^outnorms\.(\d+)\.", r"outnorm\1.", name): tensor for name, tensor in inside.items()}
    return {_BACKBONE + name: tensor for name, tensor in inside.items()} | rest


def infer_vmamba_seg(shapes: Shapes, hints: Mapping[str, Any], known: Iterable[Any] = ()) -> VMambaSegConfig:
    """Returns the geometry of a checkpoint. Raises VisqError unless it has a VMamba backbone and a head of ours."""
    inside, rest = _apart(shapes)
    telling = {"decode_head.laterals.0.weight": 2, "decode_head.classify.weight": 2}
    missing = [name for name, axes in telling.items() if len(rest.get(name, ())) != axes]
    if missing or "outnorm0.weight" not in inside:
        what = ", ".join(missing) or "backbone.outnorm0.weight"
        raise VisqError(f"not a VMamba for segmentation: {what} missing or of another rank")
    classes = rest["decode_head.classify.weight"][0]
    found = infer_vmamba({**inside, "classifier.head.weight": (classes, 1)}, {}, ())
    return VMambaSegConfig(
        channels=found.channels,
        embed_dim=found.embed_dim,
        depths=found.depths,
        d_state=found.d_state,
        expand=found.expand,
        mlp_ratio=found.mlp_ratio,
        forward_type=found.forward_type,
        head_dim=rest["decode_head.laterals.0.weight"][0],
        num_classes=classes,
    )


def preprocess(config: VMambaSegConfig) -> Preprocess:
    """Returns the transform for calibration: crops of 352 pixels. Evaluation takes images in their own size."""
    if config.channels == 3:
        return Preprocess.imagenet(352, 352)
    return Preprocess(352, 352, (0.5,) * config.channels, (0.5,) * config.channels, channels=config.channels)  # type: ignore[arg-type]


VMAMBA_SEG = register_family(
    Family(
        "vmamba_seg",
        "VMamba for segmentation",
        VMambaSegConfig,
        VMambaSeg,
        infer_vmamba_seg,
        unpack=unpack,
        pack=pack,
        preprocess=preprocess,
        any_size=True,
        per_pixel=True,
        roles={"ends": ("?decode_head.laterals.*", "?decode_head.fuse", "?decode_head.classify")},
        repeats=(r"^backbone\.", r"^(layers|outnorms|decode_head\.\w+)\.\d+\.(blocks\.\d+\.)?(op\.)?", DIRECTION),
    )
)
