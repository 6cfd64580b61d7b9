"""Where encoded images lie: folders, tars, arrays. Each lists its records once and reads any of them later."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from visq.errors import VisqError

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])
# Which of several split folders beside each other a split is read from, best first.
_SPLIT_FOLDERS = {
    "train": ("train",),
    "calib": ("train",),
    "test": ("val", "valid", "validation", "test"),
}
_ALL_SPLIT_FOLDERS = frozenset(name for names in _SPLIT_FOLDERS.values() for name in names)


class Source(Protocol):
    """Reads an image by the key its record carries; safe to call from several threads."""

    def read(self, key: int) -> bytes | np.ndarray:
        """Return a file's bytes, or grey pixels [H, W] uint8. Raises OSError."""
        ...

    def identity(self) -> str:
        """Return what tells this source's contents from another's beyond names and sizes; may be empty."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One image: its name below the split folder, its size in bytes, its class folder (None: no label)."""

    name: str
    size: int
    class_name: str | None
    source: Source
    key: int


class FolderSource:
    """Image files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: list[str] = []

    def read(self, key: int) -> bytes:
        """Return the bytes of the file."""
        return (self.root / self.paths[key]).read_bytes()

    def identity(self) -> str:
        """Return nothing: names and sizes say it."""
        return ""

    def records(self, split: str) -> list[Record]:
        """List the images below the folder, sorted by name; links are followed, hidden names left out."""
        found: dict[str, tuple[int, int]] = {}
        for folder, subfolders, files in os.walk(self.root, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for file in files:
                path = Path(folder, file)
                if _is_image(file):
                    relative = path.relative_to(self.root).as_posix()
                    found[relative] = (len(self.paths), path.stat().st_size)
                    self.paths.append(relative)
        return _records(found, self, split, str(self.root))


class TarSource:
    """Image files in an uncompressed tar, read by offset without unpacking."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.extents: list[tuple[int, int]] = []
        self._file = open(path, "rb")  # noqa: SIM115 - lives as long as the data set that reads from it

    def read(self, key: int) -> bytes:
        """Return the bytes of the member. `os.pread` keeps no position, so threads do not disturb each other."""
        offset, size = self.extents[key]
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise OSError(f"{self.path} ends inside the member")
        return data

    def identity(self) -> str:
        """Return nothing: names and sizes say it."""
        return ""

    def records(self, split: str) -> list[Record]:
        """Go through the tar once and list its images, sorted by name."""
        extents: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(self.path, "r:") as archive:
                while (member := archive.next()) is not None:
                    name = str(PurePosixPath(member.name))
                    if member.islnk():  # a hard link repeats an earlier member
                        extent = extents.get(str(PurePosixPath(member.linkname)))
                    elif member.isreg() and not member.sparse:
                        extent = (member.offset_data, member.size)
                    else:
                        extent = None
                    if extent is not None and _is_image(name):
                        extents[name] = extent
                    archive.members.clear()  # type: ignore[attr-defined]  # a million of them would stay in memory
                end = os.pread(self._file.fileno(), tarfile.BLOCKSIZE, archive.offset)
                if end.strip(b"\0"):  # tarfile takes a cut header for the end
                    raise tarfile.ReadError("unexpected end of data")
        except tarfile.ReadError as error:
            raise VisqError(f"{self.path}: not an uncompressed, whole tar ({error})") from error
        found: dict[str, tuple[int, int]] = {}
        for name, extent in extents.items():
            found[name] = (len(self.extents), extent[1])
            self.extents.append(extent)
        return _records(found, self, split, str(self.path))


class ArraySource:
    """Grey images [N, H, W] uint8 in memory."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self._digest: str | None = None

    def read(self, key: int) -> np.ndarray:
        """Return pixels [H, W] uint8."""
        image: np.ndarray = self.images[key]
        return image

    def identity(self) -> str:
        """Return the sha256 of all pixels, since the names are only numbers."""
        if self._digest is None:
            self._digest = hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()
        return self._digest

    def records(self, labels: np.ndarray, class_names: Iterable[str], prefix: str) -> list[Record]:
        """List the images in their order, named `prefix/00000`. Raises VisqError for a label without a class name."""
        names = list(class_names)
        if int(labels.max(initial=0)) >= len(names):
            raise VisqError(f"{prefix}: label {labels.max()} but only {len(names)} class names")
        size = int(np.prod(self.images.shape[1:]))
        return [Record(f"{prefix}/{i:05d}", size, names[label], self, i) for i, label in enumerate(labels.tolist())]


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _records(found: dict[str, tuple[int, int]], source: Source, split: str, where: str) -> list[Record]:
    """Turn {path: (key, size)} into records, with the class taken from the folder an image lies in.

    Where split folders lie beside each other (train and val) only the wanted one is used.
    """
    top = {PurePosixPath(path).parts[0] for path in found if "/" in path}
    splits = top & _ALL_SPLIT_FOLDERS
    if len(splits) > 1:
        wanted = next((name for name in _SPLIT_FOLDERS[split] if name in splits), None)
        if wanted is None:
            raise VisqError(f"{where}: no folder for split {split} among {', '.join(sorted(splits))}")
        found = {path: entry for path, entry in found.items() if path.startswith(f"{wanted}/")}
    if not found:
        raise VisqError(f"{where}: no images ({', '.join(sorted(SUFFIXES))}) in it")
    depths = {len(PurePosixPath(path).parts) for path in found}
    if len(depths) > 1:
        example = [next(path for path in sorted(found) if len(PurePosixPath(path).parts) == depth) for depth in depths]
        raise VisqError(f"{where}: images at different depths, for example {' and '.join(example[:2])}")
    records = []
    for path, (key, size) in found.items():
        parts = PurePosixPath(path).parts[-2:]
        records.append(Record("/".join(parts), size, parts[0] if len(parts) == 2 else None, source, key))
    return sorted(records, key=lambda record: record.name)
