"""Keeps what a search has measured, one line a number, so that an interrupted search goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visq.calibrate.stage_store import RUN, clear
from visq.errors import VisqError
from visq.files import is_temporary, replacing

#: The file of measurements in a search's folder.
MEASURED = "measured.jsonl"


def open_folder(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Prepares the folder of a search; a folder of the same search is kept as it is.

    Raises:
        VisqError: it belongs to another search or to something else, or cannot be written.
    """
    run_file = folder / RUN
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = [entry.name for entry in folder.iterdir() if entry.name != "lock" and not is_temporary(entry.name)]
        if run_file.exists():
            found = json.loads(run_file.read_text())
            different = [key for key, value in fingerprint.items() if found.get(key) != value]
            if different:
                raise VisqError(
                    f"{folder} holds a search with another {', '.join(different)}; delete it, or choose another -o"
                )
            return
        if there:
            raise VisqError(f"{folder} is in the way: the search keeps its state there; move it or choose another -o")
        clear(folder)
        with replacing(run_file) as temporary:
            temporary.write_text(json.dumps(fingerprint))
    except OSError as error:
        raise VisqError(f"cannot keep the state of the search in {folder}: {error.strerror or error}") from error
    except ValueError as error:
        raise VisqError(f"{run_file} is damaged; delete {folder} and start again") from error


class Measurements:
    """Numbers and documents by name, appended to a file as they come. A line that a kill cut short is measured again.

    Arguments:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.reused = 0
        if path is None or not path.exists():
            return
        text = path.read_bytes().decode("utf-8", "replace")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self.values[entry["name"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                continue
        if text and not text.endswith("\n"):
            self._append("\n")

    def known(self, name: str) -> bool:
        return name in self.values

    def measured(self, name: str, measure: Callable[[], float]) -> float:
        """Returns a number, measured if it is not known; infinity is kept as null."""
        value = self.document(name, lambda: _or_null(measure()))
        return math.inf if value is None else float(value)

    def document(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns what JSON holds under a name, made if it is not known."""
        if name in self.values:
            self.reused += 1
            return self.values[name]
        value = json.loads(json.dumps(make()))
        self.values[name] = value
        self._append(json.dumps({"name": name, "value": value}) + "\n")
        return value

    def _append(self, text: str) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise VisqError(f"cannot write {self.path}: {error.strerror or error}") from error


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
