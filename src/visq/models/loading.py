"""Loads a trained model from a name, a checkpoint, or both."""

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
from visq.models.checkpoint import Checkpoint, official_parameters, read_checkpoint, shapes_of
from visq.models.family import Family, Tensors, check_fields, families, family_of, image_size, num_classes, override
from visq.models.mismatch import check_shapes, check_values, other_network, part_of_several
from visq.models.names import candidates, printable
from visq.models.positions import at_resolution
from visq.models.registry import ModelCard, adapt, get_card, is_generic, list_models, rescaled
from visq.models.resolution import check_image_size, native_config, registered_as, warn_of_directions

#: Where the authors of a family publish their files, by its name.
_PROJECTS = {
    "vim": "hustvl/Vim",
    "vmamba": "MzeroMiko/VMamba",
    "efficientvmamba": "TerryPei/EfficientVMamba",
    "mambavision": "NVlabs/MambaVision",
    "localvim": "hunto/LocalMamba",
    "localvmamba": "hunto/LocalMamba",
}

#: Most layers of a network; the largest known has 48.
_MOST_LAYERS = 1000


def load_model(
    name: str | None,
    checkpoint: Path | str | None = None,
    *,
    preprocess: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    geometry: dict[str, Any] | None = None,
    ema: bool = False,
    resample: bool = True,
    fold: bool = True,
) -> Any:
    """Loads a model in evaluation mode.

    `model.card` says what it is, with the sha256 of the file it came from; `model.card.notes` says what was chosen in
    the file and whether positions were resampled.

    Arguments:
        name: a registered name, a family's ("vim", "vmamba") for whatever of it the checkpoint holds, or None for
            whatever it holds at all.
        checkpoint: a `.safetensors` or official `.pth` file; None for the weights packaged with `name`.
        preprocess: fields of Preprocess that replace those of the checkpoint or the registered name.
        classes: names of the classes, one for each row of the head.
        geometry: fields of the config that differ from the registered ones (another head, another image size), or for
            a family the ones that shapes leave open (`image_size`, for Vim `stride`). An `image_size` other than the
            checkpoint's resamples its positions. A network that takes images of any size has no `image_size`: there
            it is the size of the preprocessing's crops.
        ema: take the averaged weights of a `.pth`.
        resample: False refuses another image size where positions would have to be resampled.
        fold: False leaves the network as it was trained, for training on: batch norms stay.

    Notes of the checkpoint on its preprocessing and classes win over the registered name, an argument over both.
    Every way in which name, file and arguments do not fit together is a VisqError that says what to do.
    """
    geometry, preprocess = dict(geometry or {}), dict(preprocess or {})
    if is_generic(name):
        if checkpoint is None:
            raise VisqError(
                f"model `{name or 'vim'}` has no weights of its own; pass --checkpoint with a .safetensors or .pth file"
            )
        read = read_checkpoint(checkpoint, ema=ema)
        family, read = _placed(read, [families()[name]] if name else list(families().values()))
        _check_geometry(family, geometry, preprocess)
        card = ModelCard(family.name, None, Preprocess.imagenet(), description=f"{family.title} of {read.path.name}")
    else:
        assert name is not None
        card = get_card(name)
        family = family_of(card.config)
        _check_geometry(family, geometry, preprocess)
        read = read_checkpoint(_packaged(card) if checkpoint is None else checkpoint, ema=ema)
        accepted, read = _found(read, [family])
        part = part_of_several(read)
        if accepted is None and part is not None:
            raise VisqError(f"{read.path}: checkpoint is not {name}: {part}")
    with _naming(read.path):
        family.refuse(read.shapes, read.notes.get("model"))
        card, native, remarks = _geometry(card, read, family, geometry, preprocess)
        if not resample and native.image_size != card.config.image_size:
            raise VisqError(
                f"it was trained for images of {native.image_size} pixels, not {card.config.image_size}; its positions "
                "are resampled where that is asked for (model.interpolate_positions in a training configuration)"
            )
        tensors, resampled = at_resolution(read.tensors, native, card.config)
    model, tensors = _network(family, card, read, tensors)
    asked = "image_size" in {**geometry, **preprocess}
    if not is_generic(name) and not asked:
        with _naming(read.path):
            _check_told(card, read, family)
    model.load_state_dict(family.unpack(card.config, tensors))
    notes = (*read.remarks, *remarks, *([resampled] if resampled else []))
    model.card = _described(replace(card, notes=notes), read, preprocess, classes, asked)
    if fold:
        model = family.fold(model)
        model.card = replace(model.card, config=model.config)
    return model.eval()


def _network(family: Family, card: ModelCard, read: Checkpoint, tensors: Tensors) -> tuple[Any, Tensors]:
    """Returns the network of a card with random weights, and the tensors under official names.

    Shapes are compared before memory is taken, because a hostile file may describe a network of any size.
    """
    config = card.config
    depths = getattr(config, "depths", (getattr(config, "depth", 1),))
    if sum(depths) > _MOST_LAYERS:
        raise VisqError(f"{read.path}: its names are those of {sum(depths):,} layers; {_MOST_LAYERS:,} is the most")
    with torch.device("meta"):
        expected = family.pack(config, official_parameters(family.network(config)))
    with _naming(read.path):
        try:
            tensors = family.pack(config, family.unpack(config, tensors))
        except (RuntimeError, IndexError, KeyError, TypeError) as error:
            first = str(error).splitlines()[0][:100]
            raise VisqError(f"its tensors have shapes that no {family.title} has ({first})") from error
    check_shapes(shapes_of(expected), shapes_of(tensors), card, read)
    check_values(tensors, read)
    with torch.random.fork_rng(devices=[]):  # the random weights that are overwritten shall not move the caller's seed
        return family.network(config), tensors


def _check_geometry(family: Family, geometry: dict[str, Any], preprocess: dict[str, Any]) -> None:
    """Raises VisqError for fields that the config lacks and for impossible values.

    Where images may have any size, the size asked for moves from the geometry to the preprocessing.
    """
    if family.any_size:
        preprocess |= {key: geometry.pop(key) for key in ("image_size",) if key in geometry}
    elif "image_size" in preprocess:
        check_fields(family.config, {"image_size": preprocess["image_size"]})
    check_fields(family.config, geometry)
    for size in (geometry.get("image_size"), preprocess.get("image_size"), preprocess.get("resize")):
        check_image_size(size if type(size) is int else None, "the size asked for")


def _placed(read: Checkpoint, wanted: list[Family]) -> tuple[Family, Checkpoint]:
    """Returns the family of a checkpoint's tensors, and the checkpoint under that family's names.

    Raises VisqError, saying what the tensors seem to be, when none of the wanted families takes them.
    """
    family, found = _found(read, wanted)
    if family is not None:
        return family, found
    title = " or ".join(other.title for other in wanted)
    others = [other for other in families().values() if other not in wanted]
    other_family = _found(read, others)[0]
    if other_family is not None:
        raise VisqError(
            f"{read.path} is a {other_family.title}, not a {title} checkpoint; say --model {other_family.name}"
        )
    known = part_of_several(read) or other_network(read.shapes)
    if known is not None:
        raise VisqError(f"{read.path}: not a {title} checkpoint; {known}")
    reasons = []
    for other in wanted:
        choices = _choices(read)
        for choice in choices:
            with _naming(read.path):
                other.refuse(choice.shapes, read.notes.get("model"))
        # The shortest message lists the fewest missing names.
        reason = min((_refusal(other, choice) for choice in choices), key=len)
        reasons.append(reason if len(wanted) == 1 else f"{other.title}: {reason}")
    raise VisqError(f"{read.path}: {'' if len(wanted) == 1 else 'no known network; '}{'; '.join(reasons)}")


def _refusal(family: Family, read: Checkpoint) -> str:
    """Returns why a family does not take a checkpoint; empty when it does."""
    try:
        family.infer(read.shapes, {}, ())
    except VisqError as error:
        return str(error)
    return ""


def _found(read: Checkpoint, wanted: list[Family]) -> tuple[Family | None, Checkpoint]:
    """Returns the first family that takes the tensors under any of their names, or None."""
    for choice in _choices(read):
        for family in wanted:
            if not _refusal(family, choice):
                return family, choice
    return None, read


def _choices(read: Checkpoint) -> list[Checkpoint]:
    """Returns a checkpoint under the names it may have: as it is, with the removed prefix, or below another one."""
    choices = [read]
    if read.prefix:
        whole = {read.prefix + name: tensor for name, tensor in read.tensors.items()}
        choices.append(replace(read, tensors=whole, remarks=read.remarks[:-1]))
    for prefix in candidates(read.tensors):
        inside = {n.removeprefix(prefix): tensor for n, tensor in read.tensors.items() if n.startswith(prefix)}
        rest = [name for name in read.tensors if not name.startswith(prefix)]
        if rest:
            text = f"taken: its {len(inside)} tensors under `{printable(prefix)}`; left out: {printable(rest[0])}"
            choices.append(read.renamed(inside, text + (f" and {len(rest) - 1} more" if len(rest) > 1 else "")))
    return choices


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name before the message of a VisqError."""
    try:
        yield
    except VisqError as error:
        raise VisqError(f"{path}: {error}") from error


def _link(card: ModelCard) -> str:
    """Returns the page that links the authors' files of a registered model, as a piece of a sentence."""
    project = _PROJECTS.get(family_of(card.config).name)
    return "" if project is None else f" (https://github.com/{project} links them)"


def _packaged(card: ModelCard) -> Path:
    if card.weights is None:
        raise VisqError(
            f"the weights of {card.name} do not come with visq; pass --checkpoint with the authors' file{_link(card)} "
            "or your own"
        )
    return registry.packaged_weights(card.weights)


def _geometry(
    card: ModelCard, read: Checkpoint, family: Family, geometry: dict[str, Any], preprocess: dict[str, Any]
) -> tuple[ModelCard, Any, list[str]]:
    """Returns the card with the geometry to run, the geometry of the training, and remarks about the two."""
    asked: dict[str, Any] = {key: geometry[key] for key in ("image_size", "stride") if key in geometry}
    if "image_size" in preprocess and not family.any_size:
        asked["image_size"] = geometry["image_size"] = preprocess["image_size"]
    known = {other.name: other.config for other in list_models() if type(other.config) is family.config}
    if card.config is None:
        native, remarks = native_config(read, family, asked, known)
        config = override(native, geometry)
        base, registered = family.preprocess(config), registered_as(native, known)
        if registered is None and not {"directions"} & {*read.notes, *geometry}:
            warn_of_directions(read, family, config)
        if registered is not None and "preprocess" not in read.notes:
            theirs = get_card(registered).preprocess
            theirs = theirs if theirs.image_size == base.image_size else rescaled(theirs, base.image_size)
            if theirs != base:
                base, remarks = theirs, [*remarks, f"mean, std and resize are those of {registered}"]
        return replace(card, config=config, preprocess=base), native, remarks
    adapted = adapt(card, geometry)
    size = image_size(adapted.config)
    if "image_size" not in asked or _refusal(family, read):
        return adapted, adapted.config, []
    native, remarks = native_config(read, family, asked, {card.name: card.config, **known})
    if override(native, {"image_size": size}) != replace(adapted.config, drop_path=native.drop_path):
        return adapted, adapted.config, []  # another network: the comparison of the shapes says how
    return adapted, native, remarks


def _check_told(card: ModelCard, read: Checkpoint, family: Family) -> None:
    """Raises VisqError when a file that fits a registered model names another image size."""
    told, size = read.notes.get("image_size"), image_size(card.config)
    if told is not None and size is not None and told != size:
        raise VisqError(
            f"{card.name} takes {size} pixels, {read.sources.get('image_size', 'the file')} says {told}; say which "
            f"with --image-size, or --model {family.name} for what the file says"
        )


def _described(
    card: ModelCard, read: Checkpoint, preprocess: dict[str, Any], classes: Sequence[str] | None, asked: bool
) -> ModelCard:
    """Returns the card with the preprocessing and classes of this checkpoint and these arguments.

    Arguments:
        asked: whether the user named an image size; only then is the preprocessing of another size rescaled.
    """
    config = card.config
    with _naming(read.path):
        base = _preprocess_of(card, read)
        size = preprocess.get("image_size", image_size(config) or base.image_size)
        if asked and size != base.image_size and read.notes.get("image_size", base.image_size) == base.image_size:
            base = rescaled(base, size)
        _check_preprocess(preprocess, config.channels, size)
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


def _check_preprocess(preprocess: dict[str, Any], channels: int, size: int) -> None:
    """Raises VisqError, in the words of the options, for fields that do not fit the model's images."""
    for name in ("mean", "std"):
        values = preprocess.get(name)
        if isinstance(values, list | tuple) and len(values) != preprocess.get("channels", channels):
            grey = "grey images (1 channel)" if channels == 1 else f"images of {channels} channels"
            raise VisqError(f"--{name} has {len(values)} values, the model takes {grey}")
    resize = preprocess.get("resize")
    if type(resize) is int and type(size) is int and resize < size:
        raise VisqError(f"--resize {resize} is smaller than the crop of {size} pixels; give {size} or more")


def _preprocess_of(card: ModelCard, read: Checkpoint) -> Preprocess:
    """Returns the preprocessing of the file's notes, or the card's with the fields of the training options."""
    if "preprocess" in read.notes:
        return Preprocess.from_dict(read.notes["preprocess"])
    base, transform = card.preprocess, dict(read.notes.get("transform", {}))
    if "crop" in transform:
        transform["resize"] = max(base.image_size, int(base.image_size / transform.pop("crop")))
    fitting = {
        key: value
        for key, value in transform.items()
        if key not in ("mean", "std") or len(value) == card.config.channels
    }
    return Preprocess.from_dict({**base.to_dict(), **fitting})
