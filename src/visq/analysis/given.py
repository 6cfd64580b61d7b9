"""Models from what a Python program has in its hands: names, artifacts, networks, engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from visq.analysis.engine import EngineModel
from visq.artifact import is_artifact, load
from visq.errors import VisqError
from visq.models import load_model
from visq.models.family import num_classes
from visq.runtime import Engine
from visq.simulation import move


def fp32_model(given: Any) -> Any:
    """Returns the FP32 model that is given, or that a name stands for.

    Raises:
        VisqError: an unknown name, an artifact, or an object that is no model of visq.
    """
    if isinstance(given, str | Path):
        if is_artifact(Path(given)):
            raise VisqError(f"{given} is an artifact, which is quantized already; give the FP32 model")
        return load_model(str(given))
    if isinstance(given, Engine | EngineModel):
        raise VisqError("an engine is quantized already; give the FP32 model")
    return _network(given)


def measurable_model(given: Any) -> Any:
    """Returns a model with `card`, `config` and logits: a network, an engine behind one, or what a name stands for.

    Raises:
        VisqError: an unknown name, or an object that is no model of visq.
    """
    if isinstance(given, str | Path):
        return load(Path(given)) if is_artifact(Path(given)) else load_model(str(given))
    return EngineModel(given) if isinstance(given, Engine) else _network(given)


def place(model: Any, device: torch.device) -> None:
    """Moves a network to a device. Raises VisqError for an engine, which runs on the CPU alone."""
    if isinstance(model, EngineModel):
        if device.type != "cpu":
            raise VisqError(f"the integer engine runs on the CPU, not on {device}; evaluate the simulation there")
        return
    move(model, device)


def class_names(model: Any, dataset: Any) -> Sequence[str] | None:
    """Returns the model's class names. Where it has none, labels in memory are numbers of its outputs."""
    names: Sequence[str] | None = model.card.classes
    outputs = num_classes(model.config)
    if names is None and outputs is not None and not isinstance(dataset, str | Path):
        return [str(index) for index in range(outputs)]
    return names


def _network(given: Any) -> Any:
    if not all(hasattr(given, name) for name in ("card", "config", "stages")):
        raise VisqError(f"a {type(given).__name__} is no model of visq; use visq.load_model or visq.load")
    return given
