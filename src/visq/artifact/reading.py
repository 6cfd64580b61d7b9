"""Reads an artifact. It checks every file, key and value before it returns the model, and unpickles nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from visq.artifact.architecture import skeleton
from visq.artifact.coverage import coverage_rows
from visq.artifact.schema import CONFIG_FILE, TENSOR_FILE, ArtifactConfig, file_sha256, read_config
from visq.artifact.tensors import fill, unshare
from visq.artifact.validation import check_artifact, check_tensor_table
from visq.artifact.writing import lowered
from visq.data import Preprocess
from visq.errors import VisqError
from visq.models import ModelCard
from visq.models.family import image_size, num_classes
from visq.simulation import deploy, refuse_bad_images

_DAMAGED = "the artifact is damaged, quantize again or copy it again"


def load(path: Path | str) -> Any:
    """Returns the simulation of a quantized model in eval mode, with quantizers and with weights decoded from codes.

    `model.card`, `model.recipe`, `model.provenance` and `model.check` describe it; `model.artifact` is its whole
    config. Where the artifact has a program, `load` compares it with the network and deploys the model. A deployed
    model returns the integer engine's logits, bit for bit. If the saved model was deployed too, they are also its
    logits. No parameter requires a gradient.

    Raises:
        VisqError: something is missing, damaged or edited; the message names the file and the key.
    """
    folder = Path(path)
    config = read_config(folder)
    try:
        check_tensor_table(config)
        tensors = unshare(_read_tensors(folder / TENSOR_FILE, config), config.shared)
        check_artifact(config, {name: tensor.numpy() for name, tensor in tensors.items()})
        model = skeleton(config.architecture, max_depth=len(config.tensors))
        preprocess = Preprocess.from_dict(config.preprocess)
        geometry = model.config
        size = image_size(geometry) or preprocess.image_size
        if (preprocess.image_size, preprocess.channels) != (size, geometry.channels):
            raise VisqError("preprocess.image_size or channels do not belong to architecture.geometry")
        if config.classes is not None and len(config.classes) != num_classes(geometry):
            raise VisqError(f"classes has {len(config.classes)} names for {num_classes(geometry)} outputs")
        fill(model, config.sites, tensors)
        if tuple(coverage_rows(model, config.recipe)) != config.coverage:
            raise VisqError("coverage is not that of its sites")
    except VisqError as error:
        raise error if str(folder) in str(error) else VisqError(f"{folder}: {error}") from error
    card = ModelCard(name=config.provenance.model, config=geometry, preprocess=preprocess, classes=config.classes)
    model.card = replace(card, checkpoint_sha256=config.provenance.checkpoint_sha256)
    model.recipe, model.provenance, model.artifact = config.recipe, config.provenance, config
    model.check = config.check
    if config.program is None:
        return refuse_bad_images(model)
    model.deploy_sizes = config.deploy_sizes
    _check_program(model, folder)
    return deploy(model)


def load_verified(path: Path | str) -> Any:
    """Returns what `load` returns, and raises what it raises.

    It also refuses an artifact without a program if its network can be lowered: the engine could not run it.
    """
    model = load(path)
    if model.artifact.program is None:  # otherwise `load` has compared the program already
        _check_program(model, Path(path))
    return model


def verify(path: Path | str) -> ArtifactConfig:
    """Checks an artifact completely and returns its config. Raises VisqError as `load_verified` does."""
    config: ArtifactConfig = load_verified(path).artifact
    return config


def _check_program(model: Any, folder: Path) -> None:
    """Raises VisqError unless a loaded model's program is one lowered from its network and sites, now or before."""
    found = model.artifact.program, model.artifact.no_program
    if found != lowered(model) and found != lowered(model, stored_windows=True):
        raise VisqError(f"{folder / CONFIG_FILE}: program is not that of the network and its sites; quantize again")


def is_artifact(path: Path | str) -> bool:
    """Returns whether a folder holds a file of an artifact, even if the artifact is incomplete."""
    folder = Path(path)
    return (folder / CONFIG_FILE).exists() or (folder / TENSOR_FILE).exists()


def artifact_bytes(path: Path | str) -> int:
    """Returns the bytes of an artifact's two files."""
    return sum((Path(path) / name).stat().st_size for name in (CONFIG_FILE, TENSOR_FILE))


def _read_tensors(path: Path, config: ArtifactConfig) -> dict[str, Tensor]:
    """Reads the tensors, after it compared the file's size, hash, dtypes and shapes with the config."""
    try:
        size = path.stat().st_size
        if size != config.tensor_file.bytes:
            raise VisqError(f"{path} has {size} bytes, {config.tensor_file.bytes} expected; {_DAMAGED}")
        if file_sha256(path) != config.tensor_file.sha256:
            raise VisqError(f"{path}: sha256 does not match {CONFIG_FILE}; {_DAMAGED}")
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            missing, extra = sorted(config.tensors.keys() - names), sorted(names - config.tensors.keys())
            if missing or extra:
                what = f"missing {', '.join(missing[:5])}" if missing else f"unexpected {', '.join(extra[:5])}"
                raise VisqError(f"{path}: tensors {what}; {_DAMAGED}")
            for name, (dtype, shape) in config.tensors.items():
                part = file.get_slice(name)
                found = (part.get_dtype(), tuple(part.get_shape()))
                if found != (dtype, shape):
                    expected = f"{dtype} {list(shape)}"
                    raise VisqError(f"{path}: {name} is {found[0]} {list(found[1])}, expected {expected}; {_DAMAGED}")
            return {name: file.get_tensor(name) for name in config.tensors}
    except FileNotFoundError:
        raise VisqError(f"{path} is missing; {_DAMAGED}") from None
    except OSError as error:
        raise VisqError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise VisqError(f"{path} is not a valid safetensors file ({error}); {_DAMAGED}") from error
