"""What a run needs to continue, in one safetensors file that is replaced as a whole.

Tensors are named `model/...`, `ema/...`, `exp_avg/...` and `exp_avg_sq/...`; everything else is JSON in the file's
metadata. One file, because two cannot be replaced at the same instant. Random numbers need no state: every epoch starts
from its own seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visq.errors import VisqError
from visq.train.optimizer import WeightAverage

_FORMAT = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epoch: finished epochs. step: finished optimizer steps. seconds: time trained so far.
        config: the run's configuration as YAML; another one must not be continued with this state.
        data: fingerprint of the training images.
    """

    epoch: int
    step: int
    seconds: float
    config: str
    data: str


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: WeightAverage | None, progress: Progress
) -> None:
    """Write the state; a kill at any moment leaves the old file or the new one."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for moment in _MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    if ema is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in ema.shadow.items()}
    write_safetensors(path, tensors, {"progress": json.dumps({"format": _FORMAT, **asdict(progress)})})


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file under a temporary name and move it into place."""
    temporary = path.with_name(f"{path.name}.tmp")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_progress(path: Path) -> Progress:
    """Read how far the run of a checkpoint is. Raises VisqError when the file is not one."""
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})["progress"])
        found = values.pop("format", _FORMAT)
        if found != _FORMAT:
            raise VisqError(f"{path}: checkpoint of format {found}, this version reads {_FORMAT}")
        return Progress(**values)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise VisqError(f"{path}: not a training checkpoint ({error})") from error


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: WeightAverage | None) -> None:
    """Put a checkpoint's weights, moments and average back. Raises VisqError when they are another model's."""
    step = float(read_progress(path).step)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        wanted = {f"model/{name}" for name in model.state_dict()}
        if wanted != {name for name in names if name.startswith("model/")}:
            raise VisqError(f"{path}: holds another model's weights")
        model.load_state_dict({name.removeprefix("model/"): file.get_tensor(name) for name in wanted})
        for name, parameter in model.named_parameters():
            if f"exp_avg/{name}" in names:
                moments = {moment: file.get_tensor(f"{moment}/{name}").to(parameter.device) for moment in _MOMENTS}
                optimizer.state[parameter] = {"step": torch.tensor(step, device=parameter.device), **moments}
            if ema is not None:
                ema.shadow[name].copy_(file.get_tensor(f"ema/{name}"))
