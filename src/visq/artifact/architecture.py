"""Describes a network by family and geometry, and builds it again without weights."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from visq.artifact.schema import Architecture
from visq.errors import VisqError
from visq.models.family import families, family_of, override

#: No dimension of a known network comes near this size; a larger one means that the file is damaged.
LARGEST = 1 << 20


def describe_architecture(model: nn.Module) -> Architecture:
    """Returns the family and geometry of a model. Raises VisqError for a network of no registered family."""
    return Architecture(family=family_of(model.config).name, geometry=asdict(model.config))  # type: ignore[call-overload]


def skeleton(architecture: Architecture, max_depth: int) -> Any:
    """Returns the network on the meta device, in eval mode: names, shapes and sites, but no memory for weights.

    Arguments:
        max_depth: the largest number of layers that the file can hold weights for.
    Raises:
        VisqError: unknown family, missing or impossible geometry.
    """
    if architecture.family not in families():
        raise VisqError(f"architecture.family '{architecture.family}' is unknown; known: {', '.join(families())}")
    family = families()[architecture.family]
    geometry = architecture.geometry
    expected = {field.name for field in fields(family.config)}
    if set(geometry) != expected:
        wrong = ", ".join(sorted(set(geometry) ^ expected))
        raise VisqError(f"architecture.geometry: missing or unknown {wrong}")
    for key, value in geometry.items():
        numbers = [n for n in (value if isinstance(value, list | tuple) else [value]) if not isinstance(n, str)]
        largest = max_depth if key.startswith("depth") else LARGEST  # `depths` hold the blocks of each level
        if not all(n >= 0 for n in numbers) or sum(numbers) > largest:
            raise VisqError(f"architecture.geometry.{key} is {value}, which no weights in the file can belong to")
    config = override(family.config(), geometry)
    with torch.device("meta"):
        return family.network(config).eval()
