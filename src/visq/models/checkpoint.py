"""Reads checkpoints (safetensors, and `.pth` as torch writes it) and writes safetensors.

A checkpoint is float32 tensors and notes: facts that no tensor's shape tells, such as the image size, the stride, the
preprocessing and the class names. Our files keep them as one JSON text in the safetensors header; files of others keep
some of them in the options of their training run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visq.data import Preprocess
from visq.errors import VisqError
from visq.files import replacing
from visq.models.entries import find_weights, kind_of
from visq.models.family import family_of
from visq.models.inert_pickle import Record
from visq.models.names import printable, without_common_prefix
from visq.models.other_files import described, in_folder, of_artifact
from visq.models.torch_file import DOWNLOAD, Damaged, StoredTensor, read_torch_file
from visq.models.training_notes import training_notes

#: The only entry of the safetensors header. The order of several entries would not be reproducible.
_NOTES = "visq"
#: Types of counters and index tables. No network here has any, so they are left out.
_COUNTERS = (torch.int64, torch.int32, torch.bool)
#: Most bytes in float32 per byte of the file: 4 for 8-bit floats, more for tensors that share a storage.
_MOST_GROWTH = 8
#: Most tensors of a file; a network here has some hundred.
_MOST_TENSORS = 20_000


@dataclass(frozen=True)
class Checkpoint:
    """Holds a checkpoint as read from its file.

    Attributes:
        tensors: name -> float32 tensor on the CPU, without the `prefix` that all names had.
        notes: any of `UNTOLD`, `preprocess`, `classes`, `model` (the official name) and `transform`
            (fields of the preprocessing that the training options mention).
        sources: name of a note -> where it was found, for messages.
        left_out: name -> dtype of integer tensors, which are counters and tables.
        remarks: sentences about what was chosen in the file.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    notes: dict[str, Any]
    sources: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns name -> shape of every tensor."""
        return shapes_of(self.tensors)

    def renamed(self, tensors: dict[str, Tensor], remark: str) -> Checkpoint:
        """Returns the same checkpoint with other names or fewer tensors, and a remark about that."""
        return replace(self, tensors=tensors, remarks=(*self.remarks, remark))


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def read_checkpoint(path: Path | str, *, ema: bool = False) -> Checkpoint:
    """Reads a `.safetensors` file or a file that `torch.save` wrote.

    Weights are looked for under the entries that training programs use (`model`, `state_dict`, ...). A prefix that all
    names share is removed. Nothing is unpickled: see `inert_pickle`.

    Arguments:
        ema: take the averaged weights (`model_ema`, `ema`, ...) instead of the plain ones.

    Raises VisqError, with the file's name and what to do, when the file is missing, damaged or something else.
    """
    path = Path(path).expanduser()
    head = _beginning(path)
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        if ema:
            raise VisqError(f"{path}: a safetensors file holds one set of weights; leave out --ema (ema=False)")
        _refuse_others(path, head, safetensors=True)
        artifact = of_artifact(path)
        if artifact is not None:
            raise VisqError(f"{path} {artifact}")
        tensors, notes = _read_safetensors(path)
        found = Checkpoint(path, "", tensors, notes, {name: "its header" for name in notes})
    elif head[:2] == b"PK" or head[:1] == b"\x80":  # a zip archive, or pickles as old versions of torch wrote them
        found = _read_torch(path, ema)
    else:
        _refuse_others(path, head)
    found = _as_float32(found)
    names, prefix = without_common_prefix(list(found.tensors))
    if prefix:
        remark = f"the prefix `{printable(prefix)}` of all its names was removed"
        found = found.renamed(dict(zip(names, found.tensors.values(), strict=True)), remark)
    return replace(found, sha256=_sha256(path), prefix=prefix)


def read_safetensors_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Returns shapes and notes of one of our checkpoints without reading its tensors."""
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
    """Writes the parameters of a network under their official names; quantizers attached to its sites are left out.

    Arguments:
        path: a `.safetensors` file; its folder is created, and the file appears complete or not at all.
        preprocess, classes: kept as notes beside the geometry; by default those of `model.card`.

    The same weights give the same bytes. Raises VisqError when the file cannot be written.
    """
    path = Path(path).expanduser()
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={_NOTES: json.dumps(notes, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise VisqError(f"cannot write checkpoint {path}: {error}") from error


#: Fields of a geometry that no tensor's shape tells.
UNTOLD = ("image_size", "stride", "num_heads", "windows", "directions")


def geometry_notes(config: Any) -> dict[str, Any]:
    """Returns the fields of a geometry that no tensor's shape tells, for a checkpoint's header."""
    return {name: getattr(config, name) for name in UNTOLD if hasattr(config, name)}


def official_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters that a checkpoint holds: all but those of quantizers, which live inside sites."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".site_" not in name}


def _beginning(path: Path) -> bytes:
    """Returns the first 300 bytes of a file. Raises VisqError when there is no file to read."""
    try:
        if path.exists() and not path.is_dir() and not path.is_file():
            raise VisqError(f"checkpoint {path} is no ordinary file; give a .safetensors or .pth file")
        with path.open("rb") as file:
            head = file.read(300)
    except IsADirectoryError:
        raise VisqError(f"checkpoint {path} {in_folder(path)}") from None
    except FileNotFoundError:
        if str(path).startswith(("http:", "https:")):
            raise VisqError("visq downloads nothing: fetch the checkpoint first and give its path") from None
        raise VisqError(f"checkpoint {path} does not exist; give the path of a .safetensors or .pth file") from None
    except OSError as error:
        raise VisqError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    if not head:
        raise VisqError(f"{path} is empty (0 bytes), not a checkpoint; {DOWNLOAD}")
    return head


def _refuse_others(path: Path, head: bytes, safetensors: bool = False) -> None:
    """Raises VisqError for a file of another kind; with `safetensors` only for known kinds."""
    kind, advice = described(path, head)
    if kind or not safetensors:
        kind = f", but {kind}" if kind else ""
        raise VisqError(f"{path} is not a checkpoint: neither safetensors nor a torch file{kind}; {advice}")


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise VisqError(f"{path} is damaged or not a safetensors file ({error}); {DOWNLOAD}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _open_safetensors(path) as file:
        try:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, _parse_notes(path, file.metadata())
        except VisqError:
            raise
        except Exception as error:  # dtypes that torch does not have raise several kinds
            raise VisqError(f"{path} is damaged ({error}); {DOWNLOAD}") from error


def _parse_notes(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(_NOTES, "{}")
    try:
        notes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VisqError(f"{path}: the notes in its header are not JSON ({error})") from error
    if not isinstance(notes, dict):
        raise VisqError(f"{path}: the notes in its header are not an object")
    kinds: dict[str, type] = {
        "image_size": int,
        "stride": int,
        "num_heads": list,
        "windows": list,
        "directions": list,
        "preprocess": dict,
        "classes": list,
        "model": str,
    }
    for key, kind in kinds.items():
        value = notes.get(key)
        if value is not None and (type(value) is not kind or (type(value) is int and value <= 0)):
            raise VisqError(f"{path}: the note {key!r} in its header is {str(value)[:100]!r}, which is impossible")
    return {key: notes[key] for key in kinds if notes.get(key) is not None}


def _read_torch(path: Path, ema: bool) -> Checkpoint:
    file = read_torch_file(path)
    weights = find_weights(path, file.content, ema)
    stored: dict[str, StoredTensor] = {}
    rest: list[str] = []
    for name, value in weights.items.items():
        if isinstance(value, StoredTensor) and isinstance(name, str):
            stored[name] = value
        elif weights.entry == "" and isinstance(name, str):  # beside tensors at the top: epoch, args, ...
            rest.append(name)
        elif isinstance(name, str) and not (value is None or name.rpartition(".")[2] == "_extra_state"):
            advice = "; only dense tensors can be loaded" if isinstance(value, Record) else ""
            raise VisqError(f"{path}: entry {printable(name)!r} is a {kind_of(value)}, not a tensor{advice}")
        elif not isinstance(name, str):
            raise VisqError(f"{path} is not a checkpoint: the name {printable(name)} is no text")
    if 4 * sum(tensor.numel for tensor in stored.values()) > _MOST_GROWTH * path.stat().st_size + (64 << 20):
        raise VisqError(f"{path} is damaged: its tensors have more values than the file; {DOWNLOAD}")
    try:
        tensors = file.tensors(stored)
    except (Damaged, RuntimeError) as error:
        raise VisqError(f"{path} is damaged ({error}); {DOWNLOAD}") from error
    notes, sources = training_notes(file.content)
    remarks = []
    if weights.entry not in ("", "model"):
        remarks.append(f"its weights are those under `{printable(weights.entry)}`")
    if rest:
        remarks.append(f"beside its weights it has {_listed(rest)}, which are not used")
    if file.unusual:
        remarks.append(f"it also holds {_listed(file.unusual)}, which were read as data and not run")
    return Checkpoint(path, "", tensors, notes, sources, remarks=tuple(remarks))


def _as_float32(read: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with its tensors in float32 and without counters."""
    tensors: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    if len(read.tensors) > _MOST_TENSORS:
        raise VisqError(
            f"{read.path} has {len(read.tensors):,} tensors; no network here has more than {_MOST_TENSORS:,}"
        )
    for name, tensor in read.tensors.items():
        if tensor.dtype in _COUNTERS:
            left_out[name] = str(tensor.dtype)
        elif not tensor.is_floating_point():
            raise VisqError(
                f"{read.path}: {printable(name)} is {tensor.dtype}, not a float; quantized or complex weights "
                "cannot be loaded, give the floating-point checkpoint"
            )
        else:
            tensors[name] = tensor.float()
    if not tensors:
        raise VisqError(f"{read.path} holds no tensors of floating-point numbers; {DOWNLOAD}")
    remarks = read.remarks
    if left_out:
        remarks = (*remarks, f"left out: {_listed(left_out)} (integers, no weights)")
    return replace(read, tensors=tensors, left_out=left_out, remarks=remarks)


def _listed(names: Any) -> str:
    shown = [printable(name) for name in list(names)[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
