"""Decides the image size of a checkpoint: from the file, the registered models and the user's options.

Two sizes matter. The *native* one is what the weights were trained for. The *asked* one is where they shall run: where
it differs, position embeddings are resampled to it, and networks without any simply run there.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from visq.errors import VisqError
from visq.models.checkpoint import UNTOLD, Checkpoint
from visq.models.family import Family, image_size
from visq.models.geometry import resembling, sizes_that_fit

#: Pixels a side. Larger images are a mistake: one batch of them would not fit into memory.
LARGEST_IMAGE = 4096


def check_image_size(size: int | None, source: str) -> None:
    """Raises VisqError for an image size that no network here can run."""
    if size is not None and size > LARGEST_IMAGE:
        raise VisqError(f"{source} is {min(size, 10**12)} pixels; {LARGEST_IMAGE} pixels a side is the most")


def native_config(
    read: Checkpoint, family: Family, asked: Mapping[str, Any], known: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """Returns the geometry that the weights were trained for, and remarks about what was concluded.

    Arguments:
        asked: `image_size` and `stride` that the user gave. Both together, and a stride, describe the file; an image
            size alone does only where the file is silent and a usual stride fits.
        known: registered name -> geometry of the family.

    Raises VisqError, naming both sides, where the file contradicts itself or the user.
    """
    told: dict[str, Any] = {key: read.notes[key] for key in UNTOLD if key in read.notes}
    check_image_size(told.get("image_size"), read.sources.get("image_size", "its image size"))
    told = {**_of_official_name(read, family, known, told), **told}
    size, stride = asked.get("image_size"), asked.get("stride")
    if "image_size" in told:
        return _told(read, family, told, size, stride, known)
    if stride is not None and told.get("stride", stride) != stride:
        raise _contradiction(read, "stride", told["stride"], stride)
    if size is not None and stride is not None:
        return _fitting(family, read, {"image_size": size, "stride": stride}, known), []
    if stride is not None:
        config = family.infer(read.shapes, {"stride": stride}, known.values())
        return config, [
            f"{image_size(config)} pixels follow from {_tokens(config)} tokens at stride {stride}; if it takes others, "
            "say --image-size"
        ]
    natural = family.infer(read.shapes, told, known.values())
    registered = registered_as(natural, known)
    if size is None:
        if registered is None and size_is_free(family, read, natural):
            warnings.warn(
                f"{read.path}: nothing says for which image size this {family.title} was trained; "
                f"{natural.image_size} is a guess, say --image-size (geometry={{'image_size': ...}})",
                stacklevel=5,
            )
        return natural, [] if registered is None else [f"image size and stride are those of {registered}"]
    if registered is None and size != image_size(natural):
        try:
            described = family.infer(read.shapes, {**told, "image_size": size}, known.values())
        except VisqError:
            if size < getattr(natural, "patch_size", 1):
                raise
            return natural, []
        if size_is_free(family, read, natural) or _usual(described):
            return described, []
    return natural, []


def warn_of_directions(read: Checkpoint, family: Family, config: Any) -> None:
    """Warns that the scan directions of a network that nothing names are a guess; most networks have none."""
    lines = getattr(config, "directions", None)
    if lines is not None:
        warnings.warn(
            f"{read.path}: nothing says in which directions this {family.title} scans; '{lines[0]}' in every layer is "
            "a guess, say geometry={'directions': [...]}, a line for each layer",
            stacklevel=5,
        )


def size_is_free(family: Family, read: Checkpoint, config: Any) -> bool:
    """Returns whether every image size gives the same tensors, so that they tell no size."""
    if image_size(config) is None:
        return False
    other = {"image_size": 2 * config.image_size}
    try:
        return bool(family.infer(read.shapes, other, ()) == replace(config, **other))
    except VisqError:
        return False


def _usual(config: Any) -> bool:
    """Returns whether patches are cut as usual: without overlap, or with a half or three quarters of it."""
    patch, stride = getattr(config, "patch_size", None), getattr(config, "stride", None)
    return patch is not None and stride in (patch, patch // 2, patch // 4)


def registered_as(config: Any, known: Mapping[str, Any]) -> str | None:
    """Returns the registered name whose geometry this is, the number of classes included."""
    same = {name: other for name, other in known.items() if _classes(other) == _classes(config)}
    return resembling(config, {name: other for name, other in same.items() if image_size(other) == image_size(config)})


def _told(
    read: Checkpoint,
    family: Family,
    told: dict[str, Any],
    size: int | None,
    stride: int | None,
    known: Mapping[str, Any],
) -> tuple[Any, list[str]]:
    """Returns the geometry of a file that names its image size, and a remark where the user overrules it."""
    if stride is not None and told.get("stride", stride) != stride:
        raise _contradiction(read, "stride", told["stride"], stride)
    if stride is not None:
        told = {**told, "stride": stride}
    try:
        config = family.infer(read.shapes, told, known.values())
        gap = getattr(config, "stride", 0) > getattr(config, "patch_size", 0)
        if gap and "stride" not in told:
            raise VisqError(
                f"that would leave gaps between patches of {config.patch_size} (stride {config.stride}); "
                f"{sizes_that_fit(config.num_tokens, config.patch_size)}"
            )
        return config, []
    except VisqError as error:
        source = read.sources.get("image_size", "its notes")
        asked = {key: value for key, value in (("image_size", size), ("stride", stride)) if value is not None}
        if size is not None and size != told["image_size"]:
            try:  # the options may be stale: what the user says counts where it fits the tensors
                config = _fitting(family, read, asked, known)
                return config, [f"{source} says {told['image_size']} pixels, which does not fit; {size} do, as asked"]
            except VisqError:
                pass
        raise VisqError(f"{source} says {told['image_size']} pixels, but {error}") from error


def _fitting(family: Family, read: Checkpoint, asked: dict[str, Any], known: Mapping[str, Any]) -> Any:
    """Returns the geometry that the user describes. Raises VisqError unless it fits the tensors at a usual stride."""
    try:
        config = family.infer(read.shapes, asked, known.values())
    except VisqError as error:
        if len(asked) == 2:
            raise VisqError(f"{error}; leave --stride out to have the positions resampled") from error
        raise
    if "stride" not in asked and hasattr(config, "stride") and not _usual(config):
        raise VisqError(f"{asked['image_size']} pixels need stride {config.stride}; say --stride if that is meant")
    return config


def _of_official_name(
    read: Checkpoint, family: Family, known: Mapping[str, Any], told: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns image size and stride of the registered model that the file names, as far as the tensors agree."""
    official = known.get(read.notes.get("model", ""))
    size = None if official is None else image_size(official)
    stride = getattr(official, "stride", None)
    if size is None or told.get("image_size", size) != size:
        return {}
    hints = {"image_size": size} if stride is None else {"image_size": size, "stride": stride}
    try:
        family.infer(read.shapes, {**hints, **told}, ())
    except VisqError:
        hints.pop("image_size")
    return hints


def _contradiction(read: Checkpoint, key: str, theirs: int, asked: int) -> VisqError:
    source = read.sources.get(key) or read.sources.get("model") or "the file"
    return VisqError(f"--{key} {asked} contradicts {source}, which says {theirs}; leave it out")


def _tokens(config: Any) -> Any:
    return getattr(config, "num_tokens", "its")


def _classes(config: Any) -> int | None:
    return getattr(config, "num_classes", None)
