"""Defines families of networks, and registers new ones. Loading, training and artifacts know a network by its family.

A family has a config (its geometry), a network with sites and `stages()`, and functions that make both from a
checkpoint. docs/add-a-model.md shows how to add one.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor, nn

from visq.data import Preprocess
from visq.errors import VisqError

Shapes = Mapping[str, tuple[int, ...]]
Tensors = dict[str, Tensor]


def default_preprocess(config: Any) -> Preprocess:
    """Returns the official evaluation: resize to size / 0.875 (images up to 32 pixels: as they are), centre crop.

    RGB gets ImageNet's mean and deviation, grey 0.5. A checkpoint's own values and options override this.
    Raises VisqError for other numbers of channels.
    """
    size, channels = config.image_size, config.channels
    resize = int(size / 0.875) if size > 32 else size
    if channels == 3:
        return Preprocess.imagenet(size, resize)
    if channels == 1:
        return Preprocess(size, resize, mean=(0.5,), std=(0.5,), channels=1)
    raise VisqError(f"images of {channels} channels are not supported, only grey (1) and RGB (3)")


def need_tensors(what: str, shapes: Shapes, axes: Mapping[str, int]) -> None:
    """Raises VisqError unless a checkpoint has the tensors that tell a network from others.

    Arguments:
        what: the network in the message, such as "a VMamba checkpoint".
        axes: name of each tensor -> its number of axes.
    """
    missing = [name for name, count in axes.items() if len(shapes.get(name, ())) != count]
    if missing:
        raise VisqError(f"not {what}: {', '.join(missing)} missing or of another rank")


def expansion(what: str, shapes: Shapes, in_proj: str) -> tuple[int, int]:
    """Returns (embed_dim, expand) of a Mamba layer from the shape of its in_proj, [2 * expand * embed_dim, embed_dim].

    Raises VisqError, which names `what` the checkpoint is not, for any other shape.
    """
    inner, embed_dim = shapes[in_proj]
    if 0 in (embed_dim, inner) or inner % (2 * embed_dim):
        raise VisqError(f"not {what}: {in_proj} is {shapes[in_proj]}")
    return embed_dim, inner // (2 * embed_dim)


def need_backbone(given: Any, wanted: Any, names: Iterable[str]) -> None:
    """Raises VisqError unless a trained network's config has the fields `names` of the backbone that is wanted."""
    different = [
        f"{name} {getattr(given, name, None)} there, {getattr(wanted, name)} here"
        for name in names
        if getattr(given, name, None) != getattr(wanted, name)
    ]
    if different:
        raise VisqError(f"the backbone has another geometry ({', '.join(different)})")


#: A layer's number and its mixer, in front of a site's name.
LAYER = r"^layers\.\d+\.(blocks\.\d+\.)?((mixer|op)\.)?"
#: One of several scans of a layer: Vim's backward branch, VMamba's directions.
DIRECTION = r"_b(?=\.|_log$)|directions\.\d+\."


def _as_it_is(config: Any, tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Family:
    """Describes one kind of network.

    Attributes:
        name: the name that users type for any geometry of it.
        title: its name in messages.
        config: frozen dataclass of the geometry, every field with a default that `check_fields` can check. It has
            `channels`, `image_size` unless `any_size`, and `num_classes` where the outputs are logits.
        network: built from a config; has `config`, `stages()` and sites.
        infer: (shapes of a checkpoint, hints such as image_size, registered configs) -> config. Raises VisqError
            when the tensors belong to another family or to a variant that is not supported.
        unpack: (config, tensors of a checkpoint) -> the network's parameters; also takes older spellings.
        pack: the inverse of `unpack`.
        refuse: (shapes, official name) -> None. Raises VisqError for a variant that would load but compute something
            else.
        fold: makes a trained network ready for quantization in place (norms of fixed statistics go into the layers in
            front of them), and returns it.
        preprocess: the transform of a checkpoint that names none.
        any_size: whether the network takes images of any size. Its config then has no `image_size`, and its quantizers
            cannot have a scale per position in the sequence.
        per_pixel: whether the network gives each position a class, logits [B, num_classes, h, w].
        roles: patterns over module names that this family adds to a role of recipes (`visq.recipes.roles`), or to a
            role of its own. Each starts with `?`, because other networks lack such modules.
        repeats: regular expressions for the parts of a site's name that tell only layers and directions apart. A site's
            kind leaves them out.
    """

    name: str
    title: str
    config: type[Any]
    network: type[nn.Module]
    infer: Callable[[Shapes, Mapping[str, Any], Iterable[Any]], Any]
    unpack: Callable[[Any, Tensors], Tensors] = _as_it_is
    pack: Callable[[Any, Tensors], Tensors] = _as_it_is
    refuse: Callable[[Shapes, str | None], None] = lambda shapes, name: None
    fold: Callable[[Any], Any] = lambda model: model
    preprocess: Callable[[Any], Preprocess] = default_preprocess
    any_size: bool = False
    per_pixel: bool = False
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    repeats: tuple[str, ...] = (LAYER, DIRECTION)

    def __post_init__(self) -> None:
        for role, patterns in self.roles.items():
            if not all(pattern.startswith("?") for pattern in patterns):
                raise VisqError(f"model family {self.name!r}: patterns of role {role!r} must start with '?'")

    def kind_of(self, site: str) -> str:
        """Returns a site's name without its layer and direction: `layers.3.mixer.scan_b.h` -> `scan.h`."""
        for pattern in self.repeats:
            site = re.sub(pattern, "", site)
        return site


#: Families by name, in order of registration. `families()` also imports families of installed packages.
FAMILIES: dict[str, Family] = {}

#: Packages that bring networks name a module under this group of entry points; importing it registers them.
ENTRY_POINTS = "visq.models"


def families() -> dict[str, Family]:
    """Returns every family by name: visq's own first, then the families of installed packages."""
    load_plugins()
    return FAMILIES


@cache
def load_plugins() -> None:
    """Imports, once, the modules that installed packages name under `ENTRY_POINTS`.

    Warns about a module that fails to import, and leaves it out.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:  # a fault in another package must not stop visq
            source = f" of {entry.dist.name}" if entry.dist is not None else ""
            warnings.warn(
                f"the networks {entry.name!r}{source} ({entry.value}) are left out, importing them failed: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )


def register_family(family: Family) -> Family:
    """Makes a family known to every command. Raises VisqError when its name is taken by another network."""
    known = FAMILIES.get(family.name)
    if known is not None and known.network is not family.network:
        raise VisqError(f"model family {family.name!r} is registered already ({known.title})")
    FAMILIES[family.name] = family
    return family


def family_of(config: Any) -> Family:
    """Returns the family of a geometry. Raises VisqError for one that is not registered."""
    for family in families().values():
        if type(config) is family.config:
            return family
    raise VisqError(f"a {type(config).__name__} is of no registered family; known: {', '.join(FAMILIES)}")


def image_size(config: Any) -> int | None:
    """Returns the pixels a side of a network's images; None for a network that takes any size."""
    return getattr(config, "image_size", None)


def num_classes(config: Any) -> int | None:
    """Returns the number of classes of a network; None for a network that does not classify."""
    return getattr(config, "num_classes", None)


def image_classes(config: Any) -> int | None:
    """Returns the number of classes that an image as a whole can have; None where the network gives an image none."""
    return None if family_of(config).per_pixel else num_classes(config)


def override(config: Any, geometry: Mapping[str, Any]) -> Any:
    """Returns `config` with the fields of `geometry` replaced. Raises VisqError for unknown or impossible ones."""
    return replace(config, **check_fields(type(config), geometry))


def check_fields(config: type[Any], geometry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `geometry` with lists as tuples. Raises VisqError for unknown fields and impossible values.

    The type of a field's default sets the rule. A whole number is positive, or at least the field's metadata `minimum`.
    A tuple holds positive whole numbers, or texts that match the metadata's `pattern` (its `description` is for
    messages). A float is a rate in [0, 1), and a text is one of the metadata's `choices`.
    """
    known = {declared.name: declared for declared in fields(config)}
    result = {}
    for key, value in geometry.items():
        if key not in known:
            raise VisqError(f"unknown geometry {key!r}; known: {', '.join(known)}")
        result[key] = tuple(value) if isinstance(value, list) else value
        expected = _expected(known[key], result[key])
        if expected:
            raise VisqError(f"{key} must be {expected}, not {value!r}")
    return result


def _expected(field: Field[Any], value: Any) -> str | None:
    """Returns a description of the values that a field takes, or None when its value is fine."""
    default = field.default
    assert default is not MISSING, f"{field.name} needs a default"
    if isinstance(default, tuple) and isinstance(default[0], str):
        pattern = field.metadata["pattern"]
        texts = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        fine = texts and len(value) > 0 and all(re.fullmatch(pattern, item) for item in value)
        return None if fine else str(field.metadata["description"])
    if isinstance(default, tuple):
        fine = isinstance(value, tuple) and len(value) > 0 and all(type(item) is int and item > 0 for item in value)
        return None if fine else "a list of positive whole numbers"
    if isinstance(default, str):
        choices = field.metadata["choices"]
        return None if value in choices else f"one of {', '.join(choices)}"
    if isinstance(default, float):
        fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
        return None if fine else "a rate in [0, 1)"
    minimum = field.metadata.get("minimum", 1)
    fine = type(value) is int and value >= minimum
    return None if fine else "a positive whole number" if minimum == 1 else f"a whole number from {minimum}"
