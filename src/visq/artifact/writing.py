"""Writes an artifact completely or not at all."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from visq._version import __version__
from visq.artifact.architecture import describe_architecture
from visq.artifact.coverage import coverage_rows
from visq.artifact.schema import CONFIG_FILE, TENSOR_FILE, ArtifactConfig, Provenance, TensorFile, render
from visq.artifact.tensors import share, store
from visq.artifact.validation import check_artifact
from visq.errors import VisqError
from visq.integer.program import Program
from visq.lowering import LoweringError, lower
from visq.recipes import Recipe

#: safetensors' own names of the dtypes an artifact uses.
DTYPES = {"torch.float32": "F32", "torch.float16": "F16", "torch.uint8": "U8", "torch.int16": "I16"}


def save(
    model: Any,
    path: Path | str,
    *,
    recipe: Recipe | None = None,
    provenance: Provenance | None = None,
    overwrite: bool = False,
) -> ArtifactConfig:
    """Writes a quantized model as a folder of `model.safetensors` and `config.json`.

    Arguments:
        model: a network with quantizers; `model.card` gives preprocessing and classes, `model.check` the self-check.
        recipe, provenance: by default `model.recipe` and `model.provenance`, which `load` sets.
        overwrite: whether to replace an existing artifact, in one step.
    Raises:
        VisqError: a targeted site has no quantizer, or the folder exists or cannot be written. Nothing is left behind.
    """
    path = Path(path)
    check_destination(path, overwrite)
    config, files = serialize(model, recipe or model.recipe, provenance or model.provenance)
    _write(path, files, overwrite)
    return config


def serialize(model: Any, recipe: Recipe, provenance: Provenance) -> tuple[ArtifactConfig, dict[str, bytes]]:
    """Returns an artifact's config and the contents of its files by name.

    Raises:
        VisqError: as in `save`, and if the artifact could not be loaded again.
    """
    records, all_tensors = store(model)
    tensors, shared = share(all_tensors)
    data = safetensors_bytes(tensors)
    program, no_program = lowered(model)
    config = ArtifactConfig(
        schema_version=1,
        visq_version=__version__,
        architecture=describe_architecture(model),
        preprocess=model.card.preprocess.to_dict(),
        classes=model.card.classes,
        recipe=recipe,
        provenance=provenance,
        coverage=tuple(coverage_rows(model, recipe)),
        sites=records,
        tensor_file=TensorFile(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)),
        tensors={name: _kind(tensor) for name, tensor in sorted(tensors.items())},
        shared=shared,
        program=program,
        no_program=no_program,
        deploy_sizes=getattr(model, "deploy_sizes", ()),
        check=getattr(model, "check", None),
    )
    check_artifact(config, {name: tensor.numpy() for name, tensor in all_tensors.items()})
    values = config.to_json()
    return ArtifactConfig.model_validate(values), {TENSOR_FILE: data, CONFIG_FILE: render(values).encode()}


def lowered(model: Any, *, stored_windows: bool = False) -> tuple[Program | None, str | None]:
    """Returns (program, None) for a model that can be lowered, otherwise (None, the reason).

    Its images have the size of the model's preprocessing; an engine makes programs for other sizes from it.
    `stored_windows` is that of `visq.lowering.lower`.
    """
    training = model.training
    side = model.card.preprocess.image_size
    try:
        return lower(model.eval(), (side, side), stored_windows=stored_windows), None
    except LoweringError as error:
        return None, str(error)
    finally:
        model.train(training)


def _kind(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return DTYPES[str(tensor.dtype)], tuple(tensor.shape)


def check_destination(path: Path, overwrite: bool) -> None:
    """Raises VisqError unless `path` is free, or holds an empty folder or an artifact that may be replaced."""
    if not path.name:
        raise VisqError(f"{path} is no name for an artifact; give a new folder")
    if not os.path.lexists(path):
        return
    folder = path.is_dir() and not path.is_symlink()
    replaceable = folder and ((path / CONFIG_FILE).is_file() or not any(path.iterdir()))
    if not replaceable:
        raise VisqError(f"{path} exists and is not an artifact, so it is not overwritten; choose another folder")
    if not overwrite:
        raise VisqError(f"{path} exists; choose another folder or pass --overwrite to replace it")


def _write(path: Path, files: dict[str, bytes], overwrite: bool) -> None:
    """Writes the files into a sibling folder and renames it once they are on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, data in files.items():
            with (partial / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        check_destination(path, overwrite)
        if path.exists():
            exchange(partial, path)
        else:
            os.rename(partial, path)
    except OSError as error:
        raise VisqError(f"cannot write {path}: {error.strerror or error}; nothing was left there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def exchange(a: Path, b: Path) -> None:
    """Swaps two folders: in one step where the system can (Linux renameat2), otherwise by several renames."""
    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        if renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0:
            return
    except (AttributeError, OSError, TypeError):
        pass
    aside = b.with_name(f".{b.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(b, aside)
    try:
        os.rename(a, b)
    except OSError:
        os.rename(aside, b)
        raise
    os.rename(aside, a)
