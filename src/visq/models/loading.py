"""A trained model from a name, a checkpoint, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from visq.data import Preprocess
from visq.errors import VisqError
from visq.models import registry
from visq.models.checkpoint import Checkpoint, official_parameters, read_checkpoint
from visq.models.family import (
    Family,
    Tensors,
    check_fields,
    families,
    family_of,
    image_size,
    num_classes,
    override,
)
from visq.models.geometry import differences, resembling, sizes_that_fit
from visq.models.registry import ModelCard, adapt, get_card, is_generic, list_models


def load_model(
    name: str | None,
    checkpoint: Path | str | None = None,
    *,
    preprocess: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    geometry: dict[str, Any] | None = None,
    ema: bool = False,
) -> Any:
    """Load a model in evaluation mode; `model.card` says what it is, with the sha256 of the file it came from.

    Arguments:
        name: a registered name, a family's ("vim", "vmamba") for whatever of it the checkpoint holds, or None for
            whatever it holds at all.
        checkpoint: a `.safetensors` or official `.pth` file; None for the weights packaged with `name`.
        preprocess: fields of Preprocess that replace those of the checkpoint or the registered name.
        classes: names of the classes, one for each row of the head.
        geometry: fields of the config that differ from the registered ones (another head, another image size), or for
            a family the ones that shapes leave open (`image_size`, for Vim `stride`). A network that takes images of
            any size has no `image_size`: there it is the size of the preprocessing's crops.
        ema: take the averaged weights of a `.pth`.

    What the checkpoint says of its preprocessing and classes wins over the registered name, an argument over both.
    Every way in which name, file and arguments do not fit together is a VisqError that says what to do.
    """
    geometry, preprocess = dict(geometry or {}), dict(preprocess or {})
    if is_generic(name):
        if checkpoint is None:
            raise VisqError(
                f"model `{name or 'vim'}` has no weights of its own; pass --checkpoint with a .safetensors or .pth file"
            )
        read = read_checkpoint(checkpoint, ema=ema)
        family = families()[name] if name else _family_of(read)
        _check_geometry(family, geometry, preprocess)
        card = _card_of(read, family, geometry, preprocess)
    else:
        assert name is not None
        card = get_card(name)
        _check_geometry(family_of(card.config), geometry, preprocess)
        card = adapt(card, geometry)
        read = read_checkpoint(_packaged(card) if checkpoint is None else checkpoint, ema=ema)
        with _naming(read.path):
            family_of(card.config).refuse(read.shapes, read.notes.get("model"))
    family = family_of(card.config)
    with torch.random.fork_rng(devices=[]):  # the random weights that are overwritten shall not move the caller's seed
        model: Any = family.network(card.config)
    tensors = family.pack(card.config, family.unpack(card.config, read.tensors))
    _check_fit(family.pack(card.config, official_parameters(model)), tensors, card, read)
    model.load_state_dict(family.unpack(card.config, tensors))
    model.card = _described(card, read, preprocess, classes)
    return model.eval()


def _check_geometry(family: Family, geometry: dict[str, Any], preprocess: dict[str, Any]) -> None:
    """VisqError for fields that the config lacks, or values it cannot have. Where images may have any size, the size
    asked for moves from the geometry to the preprocessing."""
    if family.any_size:
        preprocess |= {key: geometry.pop(key) for key in ("image_size",) if key in geometry}
    elif "image_size" in preprocess:
        check_fields(family.config, {"image_size": preprocess["image_size"]})
    check_fields(family.config, geometry)


def _family_of(read: Checkpoint) -> Family:
    """The family that a checkpoint's tensors are of. Raises VisqError when there is none."""
    reasons = []
    for family in families().values():
        try:
            family.infer(read.shapes, {}, ())
            return family
        except VisqError as error:
            reasons.append(f"{family.title}: {error}")
    raise VisqError(f"{read.path}: no known network; {'; '.join(reasons)}")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before the message of a VisqError."""
    try:
        yield
    except VisqError as error:
        raise VisqError(f"{path}: {error}") from error


def _packaged(card: ModelCard) -> Path:
    if card.weights is None:
        raise VisqError(
            f"the weights of {card.name} do not come with visq; pass --checkpoint with the authors' file "
            "(https://github.com/hustvl/Vim links them) or your own"
        )
    path = registry.PRETRAINED / card.weights
    if not path.exists():
        raise VisqError(f"the packaged weights {card.weights} are missing; install visq again or pass --checkpoint")
    return path


def _card_of(read: Checkpoint, family: Family, geometry: dict[str, Any], preprocess: dict[str, Any]) -> ModelCard:
    """A card for a checkpoint without a registered name: geometry from its shapes, its notes and the arguments."""
    with _naming(read.path):
        family.refuse(read.shapes, read.notes.get("model"))
        hints: dict[str, Any] = {key: read.notes[key] for key in ("image_size", "stride") if key in read.notes}
        known = {card.name: card.config for card in list_models() if type(card.config) is family.config}
        official = known.get(read.notes.get("model", ""))
        same_size = official is not None and hints.get("image_size", image_size(official)) == image_size(official)
        stride = getattr(official, "stride", None)
        if same_size and stride is not None:
            hints.setdefault("stride", stride)
        if "image_size" in preprocess:
            hints["image_size"] = preprocess["image_size"]
        config = override(family.infer(read.shapes, {**hints, **geometry}, known.values()), geometry)
        description = f"{family.title} of {read.path.name}"
        return ModelCard(family.name, config, family.preprocess(config), description=description)


def _check_fit(wanted: Tensors, tensors: Tensors, card: ModelCard, read: Checkpoint) -> None:
    """VisqError unless a checkpoint's tensors have the network's names and shapes (both official) and are finite."""
    expected, found = ({name: tuple(tensor.shape) for name, tensor in group.items()} for group in (wanted, tensors))
    text = differences(expected, found)
    if text is not None:
        wrong = [name for name in expected if found.get(name) != expected[name]]
        advice = (
            _special_case(wrong, expected, found, card, read)
            or f"checkpoint is not {card.name}: {text}; {_identity(card, read)}"
        )
        raise VisqError(f"{read.path}: {advice}")
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise VisqError(
            f"{read.path}: NaN or infinite weights in {', '.join(broken[:5])}{more}; use another checkpoint"
        )


def _special_case(
    wrong: list[str],
    expected: dict[str, tuple[int, ...]],
    found: dict[str, tuple[int, ...]],
    card: ModelCard,
    read: Checkpoint,
) -> str | None:
    """The plain words for a checkpoint that differs from the model in one thing only."""
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
    """What the checkpoint seems to be instead of `card`, as advice."""
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
    return reasons[own.name]


def _in_short(config: Any) -> str:
    """The fields that tell two networks of a family apart."""
    names = ("embed_dim", "depth", "depths", "patch_size", "num_classes")
    return ", ".join(f"{name} {getattr(config, name)}" for name in names if hasattr(config, name))


def _described(
    card: ModelCard, read: Checkpoint, preprocess: dict[str, Any], classes: Sequence[str] | None
) -> ModelCard:
    """`card` with the preprocessing and classes that hold for this checkpoint and these arguments."""
    config = card.config
    with _naming(read.path):
        base = Preprocess.from_dict(read.notes["preprocess"]) if "preprocess" in read.notes else card.preprocess
    transform = Preprocess.from_dict({**base.to_dict(), **preprocess})
    size = image_size(config) or transform.image_size
    if (transform.image_size, transform.channels) != (size, config.channels):
        raise VisqError(
            f"{read.path}: the model takes {config.channels}x{size}x{size} images, the "
            f"preprocessing makes {transform.channels}x{transform.image_size}x{transform.image_size}"
        )
    names = classes if classes is not None else read.notes.get("classes", card.classes)
    if names is not None and len(names) != num_classes(config):
        raise VisqError(f"{read.path}: {len(names)} class names for a head of {num_classes(config) or 'no'} classes")
    return replace(
        card,
        preprocess=transform,
        classes=None if names is None else tuple(str(name) for name in names),
        checkpoint_sha256=read.sha256,
    )
