"""Reads files that `torch.save` wrote, without torch's unpickler: structure first, then only the tensors asked for.

Both formats are read: the zip archive of torch 1.6 and later, and the older sequence of pickles followed by storages.
Sizes are checked against the file before memory is taken, so that a small file cannot ask for a large allocation.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from visq.errors import VisqError
from visq.models.inert_pickle import Global, Record, RefusedName, Structure

#: Most bytes of the pickles that describe a file; 10,000 tensors with their optimizer take half of this.
MOST_STRUCTURE = 8 << 20
#: More values than any file has.
LARGEST = 1 << 48
#: Most values of a tensor that repeats the values of a smaller storage.
MOST_EXPANDED = 1 << 20
DOWNLOAD = "download it again or give another file"
ONLY_WEIGHTS = "save only the weights: torch.save({'model': model.state_dict()}, path)"
_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}
_DTYPES = {f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}


class Damaged(Exception):
    """Says where a file contradicts itself."""


@dataclass(frozen=True)
class Storage:
    """Names a storage of a file: `count` values of `dtype` under `key`."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """Describes a tensor that is not read yet: a window of a storage, in values of `dtype`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TorchFile:
    """Holds the structure of a file and reads its tensors.

    Attributes:
        content: plain values, lists, tuples, `Record` for dicts and objects, `StoredTensor` for tensors.
        unusual: classes of other packages that it holds as data.
    """

    content: Any
    unusual: tuple[str, ...]
    _opened: Callable[[], AbstractContextManager[Callable[[Storage], np.ndarray]]]

    def tensors(self, stored: dict[str, StoredTensor]) -> dict[str, Tensor]:
        """Reads tensors; those that share a storage share memory. Raises Damaged."""
        storages: dict[Storage, np.ndarray] = {}
        result = {}
        with self._opened() as read:
            for tensor in stored.values():
                if tensor.storage not in storages:
                    storages[tensor.storage] = read(tensor.storage)
        for name, tensor in stored.items():
            data = storages[tensor.storage]
            values = torch.from_numpy(data).view(tensor.dtype) if data.size else torch.empty(0, dtype=tensor.dtype)
            result[name] = values.as_strided(tensor.shape, tensor.stride, tensor.offset)
        return result


def read_torch_file(path: Path) -> TorchFile:
    """Reads the structure of a file that `torch.save` wrote; tensors are read when they are asked for.

    Raises VisqError, with the file's name, when it is damaged, compressed, not of torch, or names something that no
    checkpoint needs.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                return _read_zip(path)
            file.seek(0)
            return _read_legacy(path, file)
    except RefusedName as refused:
        raise VisqError(
            f"{path} holds a {refused}, which is no weight; it was not loaded, as unpickling it could run code; "
            f"{ONLY_WEIGHTS}"
        ) from None
    except VisqError:
        raise
    except zipfile.BadZipFile as error:
        raise VisqError(
            f"{path} is damaged or not a checkpoint: it begins as torch.save writes, but its end is missing after "
            f"{path.stat().st_size:,} bytes; {DOWNLOAD}"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise VisqError(f"{path} is damaged or not a checkpoint ({_reason(error)}); {DOWNLOAD}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:100]
    return text if isinstance(error, Damaged) else f"{type(error).__name__} {text}".strip()


def _read_zip(path: Path) -> TorchFile:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise VisqError(f"{path} is a zip archive without a torch checkpoint in it{_looks_like(entries)}")
        folder = pickles[0].removesuffix("data.pkl")
        if any(name.startswith(f"{folder}code/") for name in entries):
            raise VisqError(
                f"{path} is a TorchScript program, not a checkpoint; save the weights of the Python model: "
                "torch.save(model.state_dict(), path)"
            )
        compressed = [entry for entry in entries.values() if entry.compress_type != zipfile.ZIP_STORED]
        if compressed:
            raise VisqError(
                f"{path}: {compressed[0].filename} in it is compressed, which torch.save never does and which may "
                "unpack to any size; save it again with torch.save"
            )
        total = sum(entry.file_size for entry in entries.values())
        if total > size:
            raise VisqError(f"{path} is damaged: its directory lists {total} bytes, the file has {size}; {DOWNLOAD}")
        if entries[pickles[0]].file_size > MOST_STRUCTURE:
            raise _too_much_structure(path, entries[pickles[0]].file_size)
        if archive.read(f"{folder}byteorder") != b"little" if f"{folder}byteorder" in entries else False:
            raise VisqError(f"{path} was written on a big-endian machine, which is not supported; save it on another")
        structure = Structure(io.BytesIO(archive.read(pickles[0])), _REBUILD, _Storages())
        content = structure.load()

    @contextmanager
    def opened() -> Iterator[Callable[[Storage], np.ndarray]]:
        with zipfile.ZipFile(path) as archive:
            yield lambda storage: _from_zip(archive, f"{folder}data/{storage.key}", storage)

    return TorchFile(content, tuple(structure.unusual), opened)


def _from_zip(archive: zipfile.ZipFile, name: str, storage: Storage) -> np.ndarray:
    """Returns the bytes of a storage out of an archive, whose checksums are compared. Raises Damaged."""
    try:
        size = archive.getinfo(name).file_size
        if size != storage.bytes:
            raise Damaged(f"storage {storage.key:.20} has {size} bytes, not {storage.bytes}")
        with archive.open(name) as file:
            return _filled(file, storage)
    except Damaged:
        raise
    except Exception as error:  # zipfile raises almost anything for a damaged archive
        raise Damaged(f"storage {storage.key:.20}: {error}") from error


def _looks_like(entries: dict[str, Any]) -> str:
    """Returns what an archive seems to be, as the end of a sentence."""
    if any(name.endswith(".npy") for name in entries):
        return " (a NumPy .npz file); load its arrays and save them with torch.save"
    inside = [name for name in entries if name.lower().endswith((".pth", ".pt", ".ckpt", ".bin", ".safetensors"))]
    if inside:
        return f"; unpack it and give {inside[0][:100]}"
    return f"; {DOWNLOAD}"


def _read_legacy(path: Path, file: BinaryIO) -> TorchFile:
    size = path.stat().st_size
    bounded = _Bounded(path, file)
    first = Structure(bounded, {}).load()
    if first != _MAGIC:
        if isinstance(first, Record | list | tuple):
            raise VisqError(
                f"{path} was written by pickle, not by torch.save; load it where it was made and {ONLY_WEIGHTS}"
            )
        raise Damaged("no magic number")
    protocol, system = Structure(bounded, {}).load(), Structure(bounded, {}).load()
    if protocol != 1001 or not isinstance(system, Record) or system.get("little_endian") is not True:
        raise Damaged(f"protocol {protocol!r:.20}")
    storages = _Storages()
    structure = Structure(bounded, _REBUILD, storages)
    content = structure.load()
    keys = Structure(bounded, {}).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages.known):
        raise Damaged("the list of storages does not fit")
    positions: dict[str, int] = {}
    position = file.tell()
    for key in keys:
        positions[key] = position
        position += 8 + storages.known[key].bytes
    if position > size:
        raise Damaged(f"it should have {position} bytes and has {size}")

    @contextmanager
    def opened() -> Iterator[Callable[[Storage], np.ndarray]]:
        with path.open("rb") as file:
            yield lambda storage: _from_legacy(file, positions[storage.key], storage)

    return TorchFile(content, tuple(structure.unusual), opened)


def _from_legacy(file: BinaryIO, position: int, storage: Storage) -> np.ndarray:
    """Returns the bytes of a storage that begins, with its length, at a position of a file. Raises Damaged."""
    file.seek(position)
    if struct.unpack("<q", file.read(8)) != (storage.count,):
        raise Damaged(f"storage {storage.key:.20}: its length")
    return _filled(file, storage)


def _filled(file: Any, storage: Storage) -> np.ndarray:
    """Returns the bytes of a storage in writable memory."""
    data = np.empty(storage.bytes, np.uint8)
    rest = memoryview(data)  # type: ignore[arg-type]
    while rest:
        count = file.readinto(rest)
        if not count:
            raise Damaged(f"storage {storage.key} ends early")
        rest = rest[count:]
    return data


class _Bounded:
    """Reads a file up to `MOST_STRUCTURE` bytes and refuses more."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.left = path, file, MOST_STRUCTURE

    def read(self, count: int) -> bytes:
        return self._took(self.file.read(min(count, self.left + 1)))

    def readline(self) -> bytes:
        return self._took(self.file.readline(self.left + 1))

    def _took(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise _too_much_structure(self.path, MOST_STRUCTURE + 1)
        return data


def _too_much_structure(path: Path, size: int) -> VisqError:
    return VisqError(
        f"{path}: what describes its contents takes {size / 1e6:.1f} MB, {MOST_STRUCTURE / 1e6:.1f} MB is the "
        f"most; {ONLY_WEIGHTS}"
    )


class _Storages:
    """Makes storages of the persistent ids in a pickle: ("storage", type, key, location, number of values[, view])."""

    def __init__(self) -> None:
        self.known: dict[str, Storage] = {}

    def __call__(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise Damaged("a reference that is no storage")
        kind, key, count = pid[1], pid[2], pid[4]
        dtype = _STORAGES.get(kind.name.rpartition(".")[2]) if isinstance(kind, Global) else None
        if dtype is None or not isinstance(key, str) or type(count) is not int or not 0 <= count < LARGEST:
            raise Damaged("a storage of an unknown kind")
        storage = Storage(key, dtype, count)
        if self.known.setdefault(key, storage) != storage:
            raise Damaged(f"two storages are called {key:.20}")
        return storage


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    """Returns what stands for a call of `torch._utils._rebuild_tensor` or `_v2`."""
    return _window(storage, offset, shape, stride, getattr(storage, "dtype", None))


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> StoredTensor:
    """Returns what stands for a call of `torch._utils._rebuild_tensor_v3`, which names its dtype."""
    return _window(storage, offset, shape, stride, _DTYPES[dtype.name])


def _window(storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any) -> StoredTensor:
    """Returns the tensor with this window of a storage.

    Raises Damaged unless every value lies in the storage. Small expanded tensors (stride 0) are taken.
    """
    shape = shape.arguments[0] if isinstance(shape, Record) and len(shape.arguments) == 1 else shape  # torch.Size
    sizes = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > 8:
        raise Damaged("a tensor without a storage")
    if not all(type(size) is int and 0 <= size < LARGEST for size in sizes):
        raise Damaged("a tensor of an impossible shape")
    count = storage.bytes // dtype.itemsize
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    numel = math.prod(shape)
    if numel > max(count, MOST_EXPANDED) or (numel > 0 and last >= count):
        raise Damaged(f"a tensor of shape {tuple(shape)} in a storage of {count} values")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride), dtype)


_REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch.nn.parameter.Parameter": lambda data, *rest: data,
}
