"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from visq.errors import VisqError

#: Largest text that is read [bytes]; a device such as /dev/zero never ends.
MOST_BYTES = 256 * 2**20


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Returns the bytes of a file. A pipe that nobody writes to is empty; `Path.read_bytes` would wait for ever.

    Raises:
        OSError: it cannot be read, or has more than `most` bytes.
    """
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        os.set_blocking(file.fileno(), True)  # only opening must not wait: a shell's <(...) is read to its end
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return data


def read_text(path: Path) -> str:
    """Returns a text file in UTF-8, read as `read_bytes` does.

    Raises:
        OSError: it cannot be read, or is too large.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path).decode("utf-8")


def is_temporary(name: str) -> bool:
    """Returns whether a file has a name that `replacing` gives; a kill may leave one."""
    return name.startswith(".") and name.endswith(".tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside `path`, and moves it into place when the block ends without an error.

    It has the mode that the umask gives, whoever writes it: safetensors would let nobody else read it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8.

    Raises:
        VisqError: it cannot be written; what was there before stays.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise VisqError(f"cannot write {path}: {error.strerror or error}") from error
