"""Everything a training run needs to go on, in one safetensors file that is replaced as a whole.

Tensors are named `model/...`, `ema/...`, `exp_avg/...` and `exp_avg_sq/...`; the rest is JSON in the file's metadata.
It is one file because two cannot be replaced at the same instant. Random numbers need no state: every epoch starts from
its own seed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visq.errors import VisqError
from visq.files import is_temporary, replacing
from visq.train.optimizer import WeightAverage

_FORMAT = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        epoch: finished epochs.
        step: finished optimizer steps.
        seconds: time trained so far.
        config: the run's configuration as YAML; a run with another one must not go on from here.
        data: fingerprint of the training images.
    """

    epoch: int
    step: int
    seconds: float
    config: str
    data: str


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: WeightAverage | None, state: RunState
) -> None:
    """Writes the run; a kill at any moment leaves the old file or the new one."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for moment in _MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    if ema is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in ema.shadow.items()}
    write_safetensors(path, tensors, {"progress": json.dumps({"format": _FORMAT, **asdict(state)})})


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file under a temporary name and moves it into place."""
    with replacing(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in a folder for the time of a `with` block, or until this one dies.

    Files that a killed process had half written are removed.

    Raises:
        VisqError: another process trains there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in [path for path in folder.iterdir() if is_temporary(path.name)]:
            left.unlink()
        yield
    except BlockingIOError as error:
        raise VisqError(f"another process trains in {folder}; wait for it, or choose another folder") from error
    finally:
        os.close(descriptor)


def read_state(path: Path) -> RunState:
    """Returns how far the run in a file is.

    Raises:
        VisqError: the file is no training checkpoint, or of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})["progress"])
        found = values.pop("format", _FORMAT)
        if found != _FORMAT:
            raise VisqError(f"{path}: checkpoint of format {found}, this version reads {_FORMAT}")
        state = RunState(**values)
        for field in fields(RunState):
            value = getattr(state, field.name)
            if type(value) not in _TYPES[str(field.type)]:
                raise ValueError(f"{field.name} is {value!r}")
        return state
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise VisqError(f"{path}: not a training checkpoint ({error})") from error


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: WeightAverage | None) -> None:
    """Puts the weights, moments and average of a file back into a run.

    Raises:
        VisqError: they are missing or another model's.
    """
    step = float(read_state(path).step)
    parameters = dict(model.named_parameters())
    with safe_open(path, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
        weights = {f"model/{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if weights != {name: shape for name, shape in found.items() if name.startswith("model/")}:
            raise VisqError(f"{path}: holds another model's weights")
        for name, parameter in parameters.items():
            # A parameter that never had a gradient has no moments.
            moved = any(f"{moment}/{name}" in found for moment in _MOMENTS)
            for kind in [*(_MOMENTS if moved else ()), *(["ema"] if ema is not None else ())]:
                if found.get(f"{kind}/{name}") != tuple(parameter.shape):
                    raise VisqError(f"{path}: {kind}/{name} is missing or has another shape; start the run again")
        model.load_state_dict({name.removeprefix("model/"): file.get_tensor(name) for name in weights})
        for name, parameter in parameters.items():
            if f"exp_avg/{name}" in found:
                moments = {moment: file.get_tensor(f"{moment}/{name}").to(parameter.device) for moment in _MOMENTS}
                optimizer.state[parameter] = {"step": torch.tensor(step, device=parameter.device), **moments}
            if ema is not None:
                ema.shadow[name].copy_(file.get_tensor(f"ema/{name}"))
