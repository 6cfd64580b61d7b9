"""Checkpoint files: reading safetensors and official `.pth` files, and writing safetensors.

A checkpoint is tensors in float32 plus notes: what its author knew and the shapes of the tensors cannot say (image
size, stride, preprocessing, class names, official model name). Ours keep the notes as one JSON text in the safetensors
header; official files keep some of them in their `args`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visq.data import Preprocess
from visq.errors import VisqError
from visq.models.family import family_of

#: The one entry of the safetensors header: a single one, because the order of several is not reproducible.
_NOTES = "visq"
#: Wrappers (DataParallel, torch.compile) put these before every key.
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file as read.

    Attributes:
        tensors: name -> float32 tensor on the CPU, wrapper prefixes removed.
        notes: any of `image_size`, `stride`, `preprocess`, `classes` and `model` (the official name).
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    notes: dict[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_checkpoint(path: Path | str, *, ema: bool = False) -> Checkpoint:
    """Read a `.safetensors` file or an official `.pth`.

    Arguments:
        ema: take the averaged weights (`model_ema`) of a `.pth` instead of `model`.

    Of pickles only tensors, plain containers and argparse.Namespace are loaded; anything else is refused unexecuted.
    Raises VisqError, with the file's name and what to do, when the file is missing, damaged or something else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except IsADirectoryError:
        raise VisqError(f"{path} is a folder; give a checkpoint file (.safetensors or .pth)") from None
    except FileNotFoundError:
        raise VisqError(f"checkpoint {path} does not exist; give the path of a .safetensors or .pth file") from None
    except OSError as error:
        raise VisqError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    if head[8:] == b"{" or path.suffix == ".safetensors":
        if ema:
            raise VisqError(f"{path}: a safetensors file holds one set of weights; averaged ones need the .pth")
        tensors, notes = _read_safetensors(path)
    elif head[:2] == b"PK" or head[:1] == b"\x80":  # a zip archive, or a bare pickle as old versions of torch wrote it
        tensors, notes = _read_torch(path, ema)
    else:
        raise VisqError(f"{path} is not a checkpoint: neither safetensors nor a torch file; {_DOWNLOAD}")
    return Checkpoint(path, _sha256(path), _as_float32(path, tensors), notes)


def read_safetensors_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes and notes of one of our checkpoints without reading its tensors."""
    with _open_safetensors(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}, _parse_notes(
            path, file.metadata()
        )


def save_checkpoint(
    model: Any,
    path: Path | str,
    *,
    preprocess: Preprocess | None = None,
    classes: tuple[str, ...] | None = None,
) -> None:
    """Write the parameters of a network under their official names; quantizers attached to its sites are left out.

    Arguments:
        path: a `.safetensors` file; its folder is created, and the file appears complete or not at all.
        preprocess, classes: what the checkpoint remembers beside its geometry; by default those of `model.card`.

    The same weights give the same bytes. Raises VisqError when the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise VisqError(f"cannot save a checkpoint as {path}: its name must end in .safetensors")
    config, card = model.config, getattr(model, "card", None)
    notes: dict[str, Any] = geometry_notes(config)
    preprocess = preprocess or getattr(card, "preprocess", None)
    if preprocess is not None:
        notes["preprocess"] = preprocess.to_dict()
    classes = classes or getattr(card, "classes", None)
    if classes is not None:
        notes["classes"] = list(classes)
    official = family_of(config).pack(config, official_parameters(model))
    tensors = {name: tensor.detach().float().cpu().clone() for name, tensor in official.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, temporary, metadata={_NOTES: json.dumps(notes, sort_keys=True)})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise VisqError(f"cannot write checkpoint {path}: {error}") from error


def geometry_notes(config: Any) -> dict[str, Any]:
    """What no tensor's shape tells of a geometry, for a checkpoint's header."""
    return {name: getattr(config, name) for name in ("image_size", "stride") if hasattr(config, name)}


def official_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that a checkpoint holds: all but those of quantizers, which live inside sites."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".site_" not in name}


_DOWNLOAD = "download it again or give another file"


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise VisqError(f"{path} is damaged or not a safetensors file ({error}); {_DOWNLOAD}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _open_safetensors(path) as file:
        try:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, _parse_notes(path, file.metadata())
        except SafetensorError as error:
            raise VisqError(f"{path} is damaged ({error}); {_DOWNLOAD}") from error


def _parse_notes(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(_NOTES, "{}")
    try:
        notes = json.loads(text)
    except ValueError as error:
        raise VisqError(f"{path}: the notes in its header are not JSON ({error})") from error
    if not isinstance(notes, dict):
        raise VisqError(f"{path}: the notes in its header are not an object")
    kinds: dict[str, type] = {"image_size": int, "stride": int, "preprocess": dict, "classes": list, "model": str}
    for key, kind in kinds.items():
        value = notes.get(key)
        if value is not None and (type(value) is not kind or (type(value) is int and value <= 0)):
            raise VisqError(f"{path}: the note {key!r} in its header is {value!r}, which is impossible")
    return {key: notes[key] for key in kinds if notes.get(key) is not None}


def _read_torch(path: Path, ema: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        # argparse.Namespace is the only class official checkpoints need (for `args`); it runs no code when loaded.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise VisqError(
                f"{path} holds a {found[1]}, which is no weight; it was not loaded, as unpickling it could run code; "
                "save only the weights: torch.save({'model': model.state_dict()}, path)"
            ) from None
        raise VisqError(f"{path} is damaged or not a checkpoint; {_DOWNLOAD}") from error
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        reason = str(error).split(". ")[0].splitlines()[:1]
        raise VisqError(f"{path} is damaged or not a checkpoint ({''.join(reason)}); {_DOWNLOAD}") from error
    if not isinstance(content, dict):
        raise VisqError(f"{path} is not a checkpoint: it holds a {type(content).__name__}, not a dict of weights")
    key = "model_ema" if ema else "model"
    if isinstance(content.get(key), dict):
        return content[key], _notes_of_args(content.get("args"))
    if ema:
        raise VisqError(f"{path} has no averaged weights (`model_ema`); load its plain ones")
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return content, {}
    names = ", ".join(map(str, list(content)[:5]))
    raise VisqError(
        f"{path} is not a checkpoint: it has neither a `model` entry nor only tensors (entries: {names or 'none'})"
    )


def _notes_of_args(args: Any) -> dict[str, Any]:
    """What the training options of an official checkpoint say; odd ones are no reason to refuse the weights."""
    values = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    notes: dict[str, Any] = {}
    size = values.get("input_size", values.get("img_size"))
    if type(size) is int and size > 0:
        notes["image_size"] = size
    if isinstance(values.get("model"), str):
        notes["model"] = values["model"]
    return notes


def _as_float32(path: Path, tensors: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors in float32 under plain names; half precision is widened, anything but floats is a VisqError."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise VisqError(f"{path} is not a checkpoint: the name {name!r} is no text")
        if not isinstance(tensor, Tensor):
            raise VisqError(f"{path}: entry {name!r} is a {type(tensor).__name__}, not a tensor")
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise VisqError(f"{path}: {name} is {tensor.dtype} ({tensor.layout}); only dense floats can be loaded")
        result[name] = tensor.float()
    if not result:
        raise VisqError(f"{path} holds no tensors; {_DOWNLOAD}")
    for prefix in _PREFIXES * 2:  # in either order
        if all(name.startswith(prefix) for name in result):
            result = {name.removeprefix(prefix): tensor for name, tensor in result.items()}
    return result


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
