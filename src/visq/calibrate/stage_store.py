"""Keeps a calibration on disk, stage by stage, so that a killed one resumes to the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visq.data import Dataset
from visq.device import device_of
from visq.errors import VisqError
from visq.files import replacing
from visq.models.stage import Stage
from visq.quant.serialize import quantizer_from_parts, quantizer_to_parts
from visq.quant.site import WEIGHT, named_sites
from visq.recipes import Recipe
from visq.stages.stage_run import belongs

#: A file in the folder that belongs to whoever holds the run (`visq.pipeline.lock`).
LOCK = "lock"
#: The file that says which run the folder belongs to.
RUN = "run.json"


def clear(folder: Path) -> None:
    """Removes everything in a folder of a calibration's state but its lock.

    A kill in the middle leaves a folder that can still be used: finished stages go first, so that none is left without
    its inputs, and `run.json`, which says whose folder it is, goes last.
    """
    for entry in sorted(folder.iterdir(), key=lambda entry: (entry.name == RUN, entry.suffix != ".safetensors")):
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


class WorkFolder:
    """The folder of one calibration.

    `run.json` says which run it is, `stage-NNN.safetensors` are finished stages, `stream-NNN/` holds the FP32 inputs of
    the stage at hand, and `student-NNN/` its inputs in the network quantized so far, if a learner needs them.
    `teacher/` holds the images and FP32's outputs, if a learner of the whole network needs them.
    """

    def __init__(
        self, path: Path, *, model: nn.Module, recipe: Recipe, dataset: Dataset, seed: int, batch_size: int
    ) -> None:
        self.path = path
        self.fingerprint = {
            "recipe": recipe.digest(),
            "model": weights_digest(model),
            "calibration data": dataset.fingerprint(),
            "seed": seed,
            "batch size": batch_size,
        }

    def open(self, resume: bool, student: bool = False, teacher: bool = False) -> int:
        """Prepares the folder and returns how many stages are finished.

        Arguments:
            student: the run cannot go on without its student stream.
            teacher: nor without its teacher stream.
        Raises:
            VisqError: `resume` with the state of a different run.
        """
        run_file = self.path / RUN
        if resume and run_file.exists():
            try:
                found = json.loads(run_file.read_text())
            except (OSError, ValueError) as error:
                raise VisqError(f"{run_file} is damaged; delete {self.path} and start again") from error
            different = [key for key, value in self.fingerprint.items() if found.get(key) != value]
            if different:
                raise VisqError(
                    f"{self.path} holds a calibration with another {', '.join(different)}; "
                    "resume that one, or start without --resume"
                )
            count = 0
            while self.finished(count).exists():
                count += 1
            needed = [self.stream(count)]
            needed += [self.student(count)] if student else []
            needed += [self.teacher] if teacher else []
            if count and all(folder.is_dir() for folder in needed):
                return count
        self.path.mkdir(parents=True, exist_ok=True)
        clear(self.path)
        with replacing(run_file) as temporary:
            temporary.write_text(json.dumps(self.fingerprint))
        return 0

    def finished(self, index: int) -> FinishedStage:
        return FinishedStage(self.path / f"stage-{index:03d}.safetensors")

    def stream(self, index: int) -> Path:
        return self.path / f"stream-{index:03d}"

    def student(self, index: int) -> Path:
        return self.path / f"student-{index:03d}"

    @property
    def teacher(self) -> Path:
        return self.path / "teacher"


@dataclass(frozen=True)
class FinishedStage:
    """The file that holds the parameters and quantizers of one finished stage."""

    path: Path

    def exists(self) -> bool:
        return self.path.exists()

    def save(self, model: nn.Module, stage: Stage) -> None:
        tensors: dict[str, Tensor] = {}
        meta: dict[str, object] = {}
        rounding: dict[str, float | None] = {}
        for name, parameter in model.named_parameters():
            if belongs(name, stage):
                tensors[f"parameter/{name}"] = parameter.detach().cpu().contiguous()
        for name, site in named_sites(model):
            if site.quantizer is not None and belongs(name, stage):
                meta[name], parts = quantizer_to_parts(site.quantizer)
                rounding[name] = site.rounding_db
                tensors |= {f"site/{name}/{part}": tensor.cpu().contiguous() for part, tensor in parts.items()}
        with replacing(self.path) as temporary:
            save_file(tensors, temporary, metadata={"sites": json.dumps(meta), "rounding": json.dumps(rounding)})

    def restore(self, model: nn.Module) -> None:
        try:
            with safe_open(self.path, framework="pt") as file:
                meta = json.loads(file.metadata()["sites"])
                rounding = json.loads(file.metadata()["rounding"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        except Exception as error:
            raise VisqError(f"{self.path} is damaged; delete {self.path.parent} and start again") from error
        parameters = dict(model.named_parameters())
        for key, tensor in tensors.items():
            if key.startswith("parameter/"):
                parameter = parameters[key.removeprefix("parameter/")]
                parameter.data = tensor.to(parameter.device)
        sites = dict(named_sites(model))
        for name, site_meta in meta.items():
            prefix = f"site/{name}/"
            parts = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            sites[name].quantizer = quantizer_from_parts(site_meta, parts).to(device_of(model))
            sites[name].baked = sites[name].kind == WEIGHT
            sites[name].rounding_db = rounding[name]


def weights_digest(model: nn.Module) -> str:
    """Returns the sha256 of the names and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
