"""Checks a checkpoint's tensors against a network, and says in plain words how they differ."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.models.checkpoint import Checkpoint
from visq.models.family import Shapes, Tensors, families, family_of
from visq.models.geometry import differences, resembling, sizes_that_fit
from visq.models.registry import ModelCard, is_generic, list_models

#: A = -exp(A_log) times log2(e), which the kernels compute with, must be a finite float32.
_LARGEST_A_LOG = 88.3
_A_LOGS = re.compile(r"(^|\.)A_(log|b_log|logs|log_\d+)$")


def check_shapes(expected: Shapes, found: Shapes, card: ModelCard, read: Checkpoint) -> None:
    """Raises VisqError unless a checkpoint's tensors have the network's names and shapes, both in official form."""
    text = differences(expected, found)
    if text is None:
        return
    integers = [name for name in expected if name not in found and name in read.left_out]
    if integers:
        raise VisqError(f"{read.path}: {integers[0]} is {read.left_out[integers[0]]}; weights must be floats")
    missing = sum(name not in found for name in expected)
    other = part_of_several(read) or (other_network(found) if 2 * missing > len(expected) else None)
    if other is not None:
        raise VisqError(f"{read.path}: checkpoint is not {card.name}: {other}")
    wrong = [name for name in expected if found.get(name) != expected[name]]
    advice = (
        _special_case(wrong, expected, found, card, read)
        or f"checkpoint is not {card.name}: {text}; {_identity(card, read)}"
    )
    raise VisqError(f"{read.path}: {advice}")


def check_values(tensors: Tensors, read: Checkpoint) -> None:
    """Raises VisqError for weights that are NaN or infinite, and for decays that are infinite."""
    broken = [name for name, tensor in tensors.items() if not _finite(tensor)]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise VisqError(
            f"{read.path}: NaN or infinite weights in {', '.join(broken[:5])}{more}; use another checkpoint"
        )
    for name, tensor in tensors.items():
        if _A_LOGS.search(name) and tensor.numel() and float(tensor.max()) > _LARGEST_A_LOG:
            raise VisqError(
                f"{read.path}: {name} reaches {float(tensor.max()):.4g}, and A = -exp({name.rpartition('.')[2]}) is "
                f"infinite in float32 beyond {_LARGEST_A_LOG}; use another checkpoint"
            )


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _special_case(
    wrong: list[str],
    expected: Shapes,
    found: Shapes,
    card: ModelCard,
    read: Checkpoint,
) -> str | None:
    """Returns the sentence for a checkpoint that differs from the model in one thing only, else None."""
    config = card.config
    if any(name not in found or len(found[name]) != len(expected[name]) for name in wrong) or set(found) != set(
        expected
    ):
        return None
    if all(name.endswith(("head.weight", "head.bias")) for name in wrong):
        rows = found[wrong[0]][0]
        return (
            f"its head has {rows} classes, {card.name} has {config.num_classes}; "
            f"pass geometry={{'num_classes': {rows}}} or --model {family_of(config).name} to take it as it is"
        )
    if wrong == ["patch_embed.proj.weight"] and found[wrong[0]][1] != config.channels:
        channels = found[wrong[0]][1]
        return (
            f"it takes {channels}-channel images, {card.name} {config.channels}-channel ones; {_identity(card, read)}"
        )
    if wrong == ["pos_embed"] and found["pos_embed"][1] != config.num_tokens:
        tokens = found["pos_embed"][1]
        fitting = sizes_that_fit(tokens, config.patch_size)
        return (
            f"its position embedding has {tokens} tokens, {card.name} at {config.image_size} pixels and stride "
            f"{config.stride} has {config.num_tokens}; {fitting}; {_identity(card, read)}"
        )
    return None


def _identity(card: ModelCard, read: Checkpoint) -> str:
    """Returns advice: the model that the checkpoint seems to be of instead of `card`."""
    own = family_of(card.config)
    cards = {other.name: other.config for other in list_models()}
    reasons = {}
    for family in sorted(families().values(), key=lambda family: family is not own):
        known = [config for config in cards.values() if type(config) is family.config]
        try:
            config = family.infer(read.shapes, {}, known)
        except VisqError as error:
            reasons[family.name] = str(error)
            continue
        if is_generic(card.name) or resembling(config, {card.name: card.config}):
            return "the rest fits; give a checkpoint with all of its tensors and no others"
        name = resembling(config, cards)
        if name is not None:
            return f"looks like {name}"
        return (
            f"its shapes are those of a {family.title} ({_in_short(config)}); --model {family.name} takes it as it is"
        )
    return other_network(read.shapes) or reasons[own.name]


def _in_short(config: Any) -> str:
    """Returns the fields that tell two networks of a family apart."""
    names = ("embed_dim", "depth", "depths", "patch_size", "num_classes")
    return ", ".join(f"{name} {getattr(config, name)}" for name in names if hasattr(config, name))


#: (endings that the names of one kind of network have, its title)
_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("embedding.weight", "mixer.A_log"), "a Mamba language model"),
    (("embeddings.weight", "mixer.A_log"), "a Mamba language model"),
    (("mixer.A_log", "mixer.qkv.weight"), "a MambaVision"),
    (("embed_tokens.weight",), "a language model"),
    (("attn.qkv.weight", "pos_embed"), "a ViT or DeiT"),
    (("attn.relative_position_bias_table",), "a Swin Transformer"),
    (("layer1.0.conv1.weight", "layer4.0.conv1.weight"), "a ResNet"),
    (("dwconv.weight", "pwconv1.weight"), "a ConvNeXt"),
)


def other_network(names: Iterable[str]) -> str | None:
    """Returns a sentence about the well-known network of another kind that has such names, or None."""
    found = list(names)
    for endings, title in _OTHERS:
        if all(any(name.endswith(ending) for name in found) for ending in endings):
            return f"it looks like {title}, and visq quantizes vision networks with Mamba-1 or SS2D mixers"
    return None


def part_of_several(read: Checkpoint) -> str | None:
    """Returns a sentence about a file that is one of several, by its name, or None."""
    match = re.search(r"(\d{4,5})-of-(\d{4,5})\.", read.path.name)
    if match is None or int(match[2]) < 2:
        return None
    return f"it is file {int(match[1])} of {int(match[2])} of one checkpoint; merge them into one .safetensors file"
