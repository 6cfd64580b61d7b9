"""Reads from the options of a training run which images its network takes.

`args` (DeiT, Vim, timm), `config` (yacs: VMamba, Swin), `hyper_parameters` (Lightning) and their like keep the image
size under several names. Impossible values are ignored: odd options are no reason to refuse weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from visq.models.inert_pickle import Record

#: Entries of a checkpoint that hold options.
ENTRIES = ("args", "config", "cfg", "hyper_parameters", "hparams", "opt", "options", "opts", "meta")
_SIZES = ("input_size", "img_size", "image_size")
_MODELS = ("model", "arch", "model_name")
#: Most levels of nested options, and most options, that are looked at.
_DEPTH, _MOST = 4, 5000


def training_notes(content: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (notes, sources) of a checkpoint's options.

    Notes are any of `image_size`, `model` (the official name), `classes` and `transform` (`mean`, `std`,
    `interpolation`, `crop`: the crop's part of the resized image). Sources say where a note was found.
    """
    notes: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if not isinstance(content, Record):
        return notes, sources
    transform: dict[str, Any] = {}
    for where, key, value in _options(content):
        low = key.lower()
        if low in _SIZES and "image_size" not in notes and (size := _size(value)) is not None:
            notes["image_size"], sources["image_size"] = size, where
        elif low in _MODELS and "model" not in notes and isinstance(value, str) and value:
            notes["model"], sources["model"] = value, where
        elif low in ("mean", "std") and low not in transform and (values := _channels(value, low)) is not None:
            transform[low] = values
        elif low == "interpolation" and value in ("bicubic", "bilinear"):
            transform.setdefault("interpolation", value)
        elif low in ("crop_pct", "eval_crop_ratio") and isinstance(value, int | float) and 0.1 <= value <= 1:
            transform.setdefault("crop", float(value))
    if transform:
        notes["transform"] = transform
    classes = _classes(content)
    if classes:
        notes["classes"] = classes
    return notes, sources


def _options(content: Record) -> Iterator[tuple[str, str, Any]]:
    """Yields (path, key, value) of every option, the shallowest first."""
    level = [(name, content[name]) for name in ENTRIES if isinstance(content.get(name), Record)]
    left = _MOST
    for _ in range(_DEPTH):
        deeper = []
        for where, record in level:
            for key, value in record.items():
                left -= 1
                if left < 0:
                    return
                if not isinstance(key, str) or len(key) > 100:
                    continue
                value = _unwrapped(value)
                if isinstance(value, Record):
                    # omegaconf keeps the entries of a node under `_content`.
                    inner = value.get("_content")
                    deeper.append((where if key == "_content" else f"{where}.{key}", value if inner is None else inner))
                else:
                    yield f"{where}.{key}", key, value
        level = [(where, record) for where, record in deeper if isinstance(record, Record)]


def _unwrapped(value: Any) -> Any:
    """Returns the value of an omegaconf leaf, anything else as it is."""
    return value["_val"] if isinstance(value, Record) and "_val" in value else value


def _size(value: Any) -> int | None:
    """Returns pixels a side, from a number or from [channels,] height, width; None for anything else."""
    sides = value[-2:] if isinstance(value, list | tuple) and value else [value]
    side = sides[0]
    return (
        side
        if type(side) is int and side > 0 and all(type(other) is int and other == side for other in sides)
        else None
    )


def _channels(value: Any, name: str) -> list[float] | None:
    """Returns a finite number for each of 1 or 3 channels (deviations positive); None for anything else."""
    if not isinstance(value, list | tuple) or len(value) not in (1, 3):
        return None
    if not all(type(item) in (int, float) and math.isfinite(item) for item in value):
        return None
    return [float(item) for item in value] if name == "mean" or min(value) > 0 else None


def _classes(content: Record) -> list[str] | None:
    """Returns class names: a list of texts, or the `class_to_idx` of torchvision's folders."""
    for key in ("classes", "class_names"):
        value = content.get(key)
        if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
            return list(value)
    index = content.get("class_to_idx")
    if isinstance(index, Record) and index and all(isinstance(key, str) for key in index):
        names = sorted(index, key=lambda name: index[name] if type(index[name]) is int else -1)
        if [index[name] for name in names] == list(range(len(names))):
            return list(names)
    return None
