"""Finds the entry of a torch file that holds the weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visq.errors import VisqError
from visq.models.inert_pickle import Record
from visq.models.names import printable
from visq.models.torch_file import ONLY_WEIGHTS, StoredTensor

#: Entries under which training programs keep weights, in the order of preference.
PLAIN = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
    "backbone",
    "encoder",
    "student",
)
#: Entries under which training programs keep averaged weights.
AVERAGED = (
    "model_ema",
    "ema",
    "state_dict_ema",
    "model_ema_state_dict",
    "ema_state_dict",
    "ema_model",
    "model_state_dict_ema",
    "params_ema",
    "averaged_model",
)
#: Entries that hold the state of a training run; the message about a file without weights names them.
_TRAINING = ("optimizer", "optimizer_state_dict", "optimizer_states", "lr_scheduler", "lr_schedulers", "scaler")
#: (part of an object's name, what a message calls the object)
_KINDS = (
    ("_rebuild_qtensor", "quantized tensor"),
    ("sparse", "sparse tensor"),
    ("_reconstruct", "NumPy array"),
    ("dict", "dict"),
)


@dataclass(frozen=True)
class Weights:
    """Holds the entry with the weights: its name (empty for the whole file) and its items."""

    entry: str
    items: Record


def find_weights(path: Path, content: Any, averaged: bool) -> Weights:
    """Returns the plain or the averaged weights of a file.

    Raises VisqError, with the file's name and what it holds instead, when there are none or several.
    """
    if isinstance(content, Record) and content.name != "dict" and "_modules" in content:
        raise _whole_model(path, content)
    if not isinstance(content, Record):
        raise VisqError(f"{path} is not a checkpoint: it holds a {kind_of(content)}, not a dict of weights")
    for name in AVERAGED if averaged else PLAIN:
        if isinstance(content.get(name), Record):
            return _inside(path, name, content[name])
    if averaged:
        raise VisqError(f"{path} has no averaged weights ({', '.join(AVERAGED[:3])}); leave out --ema (ema=False)")
    if has_tensors(content.values()):
        return Weights("", content)
    others = [name for name, value in content.items() if isinstance(value, Record) and has_tensors(value.values())]
    averages = [name for name in others if name in AVERAGED]
    if len(others) == 1 or averages:
        name = others[0] if len(others) == 1 else averages[0]
        return _inside(path, name, content[name])
    names = ", ".join(printable(name) for name in list(content)[:5])
    if others:
        raise VisqError(
            f"{path} has weights of several networks ({', '.join(map(printable, others[:5]))}); save the one you want: "
            "torch.save({'model': weights}, path)"
        )
    training = [name for name in _TRAINING if name in content]
    optimizer = "it holds the state of an optimizer, not of a network"
    why = optimizer if training or "param_groups" in content else "it holds no weights"
    raise VisqError(f"{path} is not a checkpoint: {why} (entries: {names or 'none'}); {ONLY_WEIGHTS}")


def _inside(path: Path, name: str, value: Record) -> Weights:
    """Returns the weights under an entry, which may itself be a checkpoint (`model: {state_dict: ...}`)."""
    for _ in range(3):
        if "_modules" in value and "_parameters" in value:
            raise _whole_model(path, value)
        if has_tensors(value.values()):
            break
        inner = [key for key in (*PLAIN, *AVERAGED) if isinstance(value.get(key), Record)]
        if not inner:
            break
        name, value = f"{name}.{inner[0]}", value[inner[0]]
    return Weights(name, value)


def _whole_model(path: Path, value: Record) -> VisqError:
    return VisqError(
        f"{path} holds a whole model ({printable(value.name)}), which needs its own code; load it where it was made "
        f"and {ONLY_WEIGHTS}"
    )


def has_tensors(values: Iterable[Any]) -> bool:
    """Returns whether any of the values is a tensor."""
    return any(isinstance(value, StoredTensor) for value in values)


def kind_of(value: Any) -> str:
    """Returns what a message calls a value."""
    if isinstance(value, StoredTensor):
        return "tensor"
    if isinstance(value, Record):
        return next((kind for part, kind in _KINDS if part in value.name), printable(value.name))
    return type(value).__name__
