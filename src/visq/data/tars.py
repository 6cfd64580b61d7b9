"""Images in a tar, read by offset without unpacking; a compressed one is unpacked once, to an unnamed file."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from visq.data.records import MOST_BYTES, Record, is_image, make_records
from visq.errors import VisqError

_GZIP = b"\x1f\x8b"
#: A gzipped tar may unpack to this many times its size, beside the first gigabyte. Images do not compress further.
_MOST_TIMES, _ALLOWANCE = 100, 1 << 30


class TarSource:
    """Image files in a `.tar` or `.tar.gz`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.extents: list[tuple[int, int]] = []  # (offset, size) of every image [bytes]
        self._file: IO[bytes] = _open(path)

    def read(self, key: int) -> bytes:
        """Returns the bytes of the member. Raises OSError when it is larger than any image or the tar has changed."""
        offset, size = self.extents[key]
        if size > MOST_BYTES:
            raise OSError(f"its {size / 1e9:.1f} GB are more than an image has")
        # pread keeps no position, so that threads do not disturb each other.
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise OSError(f"{self.path} ends inside the member")
        return data

    def records(self, split: str) -> list[Record]:
        """Goes through the tar once and lists its images, sorted by name.

        Raises:
            VisqError: the file is no tar, damaged, or cut off, or as `make_records`.
        """
        extents: dict[str, tuple[int, int]] = {}
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                for member in _members(archive):
                    name = str(PurePosixPath(member.name))
                    if member.islnk():  # a hard link repeats an earlier member
                        extent = extents.get(str(PurePosixPath(member.linkname)))
                    elif member.isreg() and not member.sparse:
                        extent = (member.offset_data, member.size)
                    else:
                        extent = None
                    if extent is not None and is_image(name):
                        extents[name] = extent
                end = os.pread(self._file.fileno(), tarfile.BLOCKSIZE, archive.offset)
                if end.strip(b"\0"):  # tarfile takes a cut header for the end
                    raise tarfile.ReadError("unexpected end of data")
        except VisqError:
            raise
        except Exception as error:  # damaged metadata makes tarfile raise almost anything
            raise VisqError(_no_tar(self.path, error)) from error
        self.extents = list(extents.values())
        return make_records({name: key for key, name in enumerate(extents)}, self, split, str(self.path))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the members in order. Raises ReadError for sizes that lead backwards or nowhere."""
    while (member := archive.next()) is not None:
        if member.size < 0 or archive.offset <= member.offset:  # a negative size would be read for ever
            raise tarfile.ReadError(f"member {member.name!r} has a size of {member.size} bytes")
        yield member
        archive.members.clear()  # type: ignore[attr-defined]  # a million of them would stay in memory


def _open(path: Path) -> IO[bytes]:
    """Opens a tar that can be read by offset: the file itself, or what a gzipped one unpacks to.

    Raises:
        VisqError: it cannot be read or unpacked.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - lives as long as the data set that reads from it
        if file.read(2) != _GZIP:
            return file
        with file:
            return _unpacked(path)
    except OSError as error:
        raise VisqError(f"{path} cannot be read: {error.strerror or error}") from error


def _no_tar(path: Path, error: Exception) -> str:
    """Says why a file was not read as a tar, and what to give in its place."""
    with path.open("rb") as file:
        head = file.read(16)
    for name, begins in (("a zip", b"PK"), ("an image", b"\xff\xd8\xff"), ("an image", b"\x89PNG")):
        if head.startswith(begins):
            instead = "unpack it and give its folder" if name == "a zip" else "give the folder that holds it"
            return f"{path} is {name}, not a tar; {instead}"
    return (
        f"{path}: not a whole tar or tar.gz ({str(error) or type(error).__name__}); "
        "give a tar or a folder of images, or make this file again if it should be one"
    )


def _unpacked(path: Path) -> IO[bytes]:
    """Copies the images of a gzipped tar to an unnamed temporary tar, which vanishes with the process."""
    folder = tempfile.gettempdir()
    most = _MOST_TIMES * path.stat().st_size + _ALLOWANCE
    room = shutil.disk_usage(folder).free // 2
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the data set that reads from it
    try:
        with gzip.open(path) as stream:
            with (
                tarfile.open(fileobj=stream, mode="r|") as archive,
                tarfile.open(fileobj=unpacked, mode="w|") as images,
            ):
                for member in _members(archive):
                    _check_size(path, archive.offset, most)
                    if unpacked.tell() + member.size > room:
                        raise VisqError(f"{path}: too large to unpack to {folder}; unpack it first")
                    _copy(archive, member, images)
            while stream.read(1 << 20):  # only at its end does gzip find out whether the file is whole
                _check_size(path, stream.tell(), most)
    except Exception as error:
        unpacked.close()
        if isinstance(error, VisqError):
            raise
        raise VisqError(_no_tar(path, error)) from error
    return unpacked


def _check_size(path: Path, size: int, most: int) -> None:
    if size > most:
        raise VisqError(f"{path}: unpacks to more than {_MOST_TIMES} times its size; unpack it first")


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, images: tarfile.TarFile) -> None:
    """Copies one member if it is an image, or a hard link to one."""
    if not is_image(str(PurePosixPath(member.name))):
        return
    if member.islnk():
        images.addfile(member)
    elif member.isreg() and not member.sparse and member.size <= MOST_BYTES:
        images.addfile(member, archive.extractfile(member))
