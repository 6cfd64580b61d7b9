"""Translates between checkpoints of VMamba's segmentation and our network: names, stacked directions, geometry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from visq.data import Preprocess
from visq.errors import VisqError
from visq.models.family import DIRECTION, Family, Shapes, Tensors, need_tensors, register_family
from visq.models.vmamba_checkpoint import infer_vmamba
from visq.models.vmamba_checkpoint import pack as pack_backbone
from visq.models.vmamba_checkpoint import unpack as unpack_backbone
from visq.models.vmamba_seg import BACKBONE, VMambaSeg, VMambaSegConfig, fold_norms

_BACKBONE = "backbone."
#: Tensors of training: a second head for its loss, and counters of batches.
_DROPPED = re.compile(r"^auxiliary_head\.|\.num_batches_tracked$")


def _apart(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the tensors of the backbone without its prefix, and all others."""
    inside = {n.removeprefix(_BACKBONE): t for n, t in tensors.items() if n.startswith(_BACKBONE)}
    return inside, {n: t for n, t in tensors.items() if not n.startswith(_BACKBONE)}


def unpack(config: VMambaSegConfig, tensors: Tensors) -> Tensors:
    """Returns the network's parameters of official tensors."""
    inside, rest = _apart({name: tensor for name, tensor in tensors.items() if not _DROPPED.search(name)})
    inside = {re.sub(r"^outnorm(\d+)\.", r"outnorms.\1.", name): tensor for name, tensor in inside.items()}
    return {_BACKBONE + n: t for n, t in unpack_backbone(config.backbone, inside).items()} | rest


def pack(config: VMambaSegConfig, tensors: Tensors) -> Tensors:
    """Returns the official tensors, in their latest names, of the network's parameters."""
    inside, rest = _apart(tensors)
    inside = pack_backbone(config.backbone, inside)
    inside = {re.sub(r"^outnorms\.(\d+)\.", r"outnorm\1.", name): tensor for name, tensor in inside.items()}
    return {_BACKBONE + name: tensor for name, tensor in inside.items()} | rest


#: Kind of a head -> the tensors whose first axis is its width, and its number of classes.
_TELLING = {
    "light": ("decode_head.laterals.0.weight", "decode_head.classify.weight"),
    "upernet": ("decode_head.fpn_bottleneck.conv.weight", "decode_head.conv_seg.weight"),
}


def infer_vmamba_seg(shapes: Shapes, hints: Mapping[str, Any], known: Iterable[Any] = ()) -> VMambaSegConfig:
    """Returns the geometry of a checkpoint. Raises VisqError unless it has a VMamba backbone and a head of ours."""
    inside, rest = _apart(shapes)
    head = "upernet" if "decode_head.fpn_bottleneck.conv.weight" in rest else "light"
    width, last = _TELLING[head]
    axes_of_head = 4 if head == "upernet" else 2
    telling = {width: axes_of_head, last: axes_of_head}
    need_tensors("a VMamba for segmentation", rest, telling)
    if "outnorm0.weight" not in inside:
        raise VisqError("not a VMamba for segmentation: backbone.outnorm0.weight missing or of another rank")
    classes = rest[last][0]
    found = infer_vmamba({**inside, "classifier.head.weight": (classes, 1)}, {}, ())
    return VMambaSegConfig(
        head=head,
        head_dim=rest[width][0],
        norm="folded" if head == "upernet" and "decode_head.bottleneck.bn.weight" not in rest else "batch",
        num_classes=classes,
        **{name: getattr(found, name) for name in BACKBONE},
    )


def preprocess(config: VMambaSegConfig) -> Preprocess:
    """Returns the transform for calibration: crops of 352 pixels. Evaluation takes images in their own size."""
    if config.channels == 3:
        return Preprocess.imagenet(352, 352)
    return Preprocess(352, 352, (0.5,) * config.channels, (0.5,) * config.channels, channels=config.channels)  # type: ignore[arg-type]


#: Modules of both heads that recipes should treat as the ends of a network.
_ENDS = ("laterals.*", "*resize.*", "fuse", "classify", "*.conv", "conv_seg")

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
        fold=fold_norms,
        any_size=True,
        per_pixel=True,
        roles={"ends": tuple(f"?decode_head.{name}" for name in _ENDS)},
        repeats=(
            r"^backbone\.",
            r"^layers\.\d+\.(blocks\.\d+\.)?(op\.)?",
            r"(?<=norms|erals|esize|dules|convs)\.\d+(\.\d+)?",
            DIRECTION,
        ),
    )
)
