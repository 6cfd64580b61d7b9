"""From a family and a geometry to a network without weights."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from visq.artifact.schema import Architecture
from visq.errors import VisqError
from visq.models import VimConfig, VisionMamba
from visq.models.registry import override

#: name -> (configuration, network built from it)
FAMILIES: dict[str, tuple[type[Any], type[nn.Module]]] = {"vim": (VimConfig, VisionMamba)}

#: No dimension of a known network comes near this; a larger one is damage.
LARGEST = 1 << 20


def describe_architecture(model: nn.Module) -> Architecture:
    """The family and geometry of a model."""
    for family, (config, network) in FAMILIES.items():
        if isinstance(model, network) and isinstance(model.config, config):
            return Architecture(family=family, geometry=asdict(model.config))
    raise VisqError(f"a {type(model).__name__} cannot be saved as an artifact; known families: {', '.join(FAMILIES)}")


def skeleton(architecture: Architecture, max_depth: int) -> Any:
    """The network on the meta device: names, shapes and sites without memory for weights, in eval mode.

    Arguments:
        max_depth: more layers than this cannot have weights in the file.
    Raises:
        VisqError: unknown family, missing or impossible geometry.
    """
    if architecture.family not in FAMILIES:
        raise VisqError(f"architecture.family '{architecture.family}' is unknown; known: {', '.join(FAMILIES)}")
    config_class, network = FAMILIES[architecture.family]
    geometry = architecture.geometry
    expected = {field.name for field in fields(config_class)}
    if set(geometry) != expected:
        wrong = ", ".join(sorted(set(geometry) ^ expected))
        raise VisqError(f"architecture.geometry: missing or unknown {wrong}")
    for key, value in geometry.items():
        if not 0 <= value <= (max_depth if key == "depth" else LARGEST):
            raise VisqError(f"architecture.geometry.{key} is {value}, which no weights in the file can belong to")
    config = override(config_class(), geometry)
    with torch.device("meta"):
        return network(config).eval()
