"""The engine's builder, call by call: each is tried at once, and a refused call leaves no trace."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from visq.native import extension
from visq.native.flat_file import FlatFile

UNFINISHED = "the program has no end"


class Builder:
    """Calls of the builder by name. Each writes a file with all calls so far and loads it.

    Arguments:
        isa: the level to load for.
        channels, size: of an image.
    """

    def __init__(self, isa: str, channels: int, size: int) -> None:
        self.isa, self.image = isa, (channels, size)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def add(self, name: str, *arguments: Any) -> int | None:
        """Calls `name`; returns the index of a new codec or tensor.

        Raises:
            ValueError: the engine refuses the call.
        """
        self.calls.append((name, arguments))
        try:
            return self._load()
        except ValueError:
            self.calls.pop()
            raise

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.add(name, *arguments)

    def _load(self) -> int | None:
        file, found = FlatFile(*self.image), None
        for name, arguments in self.calls:
            call = getattr(file, name, None)
            found = call(*arguments) if call else file.add(name, *arguments)
        with suppress(Unfinished):
            load(self.isa, file)
        return found


class Unfinished(Exception):
    """The file is right as far as it goes."""


def load(isa: str, file: FlatFile) -> Any:
    try:
        return extension._C.Engine(isa, file.bytes())
    except ValueError as error:
        if UNFINISHED in str(error):
            raise Unfinished from error
        raise
