"""Readable names of ImageNet's classes."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def imagenet_names() -> tuple[str, ...]:
    """Returns the names of the 1,000 classes in the order of ILSVRC 2012, all different from each other."""
    path = resources.files("visq.data") / "embedded" / "imagenet_classes.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())
