"""Holds the facts that a network needs beside its weights: `ModelCard`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visq.data import Preprocess


@dataclass(frozen=True)
class ModelCard:
    """Describes a model: the facts that its weights do not tell.

    Attributes:
        name: the name that users type; `alias_of` is the official name when `name` is a short one of ours.
        weights: file name of the packaged weights, or None when the user brings the checkpoint.
        published_top1: ImageNet top-1 in percent that the authors report for their checkpoint.
        checkpoint_sha256: hash of the checkpoint file the model was loaded from; None for random weights.
        notes: sentences about what was chosen in the checkpoint and changed for another image size.
    """

    name: str
    config: Any
    preprocess: Preprocess
    classes: tuple[str, ...] | None = None
    weights: str | None = None
    description: str = ""
    published_top1: float | None = None
    checkpoint_sha256: str | None = None
    alias_of: str | None = None
    notes: tuple[str, ...] = ()
