"""Folders and arrays of images; each lists its records once and reads any of them later."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from visq.data.records import MOST_BYTES, Record, is_image, make_records
from visq.errors import VisqError

#: Links may show one folder under this many paths; more is a tree of links that never ends.
_MOST_PATHS = 100


class FileSource:
    """Image files by their paths."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def read(self, key: int) -> bytes:
        """Returns the bytes of the file. Raises OSError, also for a pipe or device in the place of a file."""
        return read_file(self.paths[key])


class FolderSource:
    """Image files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: list[str] = []

    def read(self, key: int) -> bytes:
        """Returns the bytes of the file. Raises OSError, as `FileSource.read` does."""
        return read_file(self.root / self.paths[key])

    def records(self, split: str) -> list[Record]:
        """Lists the images below the folder, sorted by name; links are followed, hidden names left out.

        A link to a folder that contains it is skipped: it shows no new image. Whatever has an image's name and cannot
        be read (a dangling link, a pipe) is listed, and skipped or refused when it is read.

        Raises:
            VisqError: a folder that cannot be listed, links that never end, or as `make_records`.
        """
        self.paths = self.list_paths()
        return make_records({path: key for key, path in enumerate(self.paths)}, self, split, str(self.root))

    def list_paths(self) -> list[str]:
        """Returns the paths of all images below the folder, relative to it and sorted; errors as `records`."""
        return sorted(self._walk())

    def _walk(self) -> Iterator[str]:
        """Yields the paths of images below the root."""
        visits: Counter[tuple[int, int]] = Counter()
        pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
        while pending:
            folder, above = pending.pop()
            try:
                status = os.stat(self.root / folder)
                with os.scandir(self.root / folder) as entries:
                    listed = [(entry.name, _is_folder(entry)) for entry in entries]
            except OSError as error:
                raise VisqError(f"{self.root / folder} cannot be listed: {error.strerror or error}") from error
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            visits[identity] += 1
            if visits[identity] > _MOST_PATHS:
                raise VisqError(f"{self.root / folder}: links lead to this folder by more than {_MOST_PATHS} paths")
            for name, is_folder in listed:
                path = f"{folder}/{name}" if folder else name
                if is_folder and not name.startswith("."):
                    pending.append((path, above | {identity}))
                elif not is_folder and is_image(name):
                    yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself is no folder; any other error hides images
            return False
        raise


class ArraySource:
    """Images in memory: an array [N, H, W] or [N, H, W, 3] uint8, or arrays of one image each."""

    def __init__(self, images: Sequence[np.ndarray] | np.ndarray) -> None:
        self.images = images

    def read(self, key: int) -> np.ndarray:
        """Returns the image as it was given."""
        image: np.ndarray = self.images[key]
        return image

    def records(self, labels: np.ndarray, class_names: Iterable[str], prefix: str) -> list[Record]:
        """Lists the images in their order, named `prefix/00000`.

        Arguments:
            labels: [N] whole numbers, each the index of one of `class_names`.
        Raises:
            VisqError: a label without a class name.
        """
        names = list(class_names)
        if int(labels.max(initial=0)) >= len(names):
            raise VisqError(f"{prefix}: label {labels.max()} but only {len(names)} class names")
        return [Record(f"{prefix}/{i:05d}", names[label], self, i) for i, label in enumerate(labels.tolist())]


def read_file(path: Path) -> bytes:
    """Returns the bytes of an ordinary file.

    Raises:
        OSError: it cannot be read, is a pipe, folder or device, or is larger than any image.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not an ordinary file")
        if status.st_size > MOST_BYTES:
            raise OSError(f"its {status.st_size / 1e9:.1f} GB are more than an image has")
        return file.read()
