"""Prints what commands have to say: text for people, or JSON alone."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visq.errors import VisqError
from visq.files import write_text
from visq.native.threads import checked_threads
from visq.progress import Progress

if TYPE_CHECKING:
    import torch


class Output:
    """Prints text on stdout unless the JSON goes there, warnings on stderr, and results as JSON where asked for."""

    def __init__(self, json_to: str | None = None) -> None:
        self.json_to = json_to
        self.first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, one speaks
        self.progress = Progress("silent" if json_to == "-" or not self.first else None)
        if json_to not in (None, "-"):
            check_file("--json", Path(str(json_to)))

    def say(self, line: str = "") -> None:
        self.progress.say(line)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints aligned columns; those that hold numbers only are aligned to the right."""
        for line in align(header, rows):
            self.say(line)

    def warn(self, line: str) -> None:
        if self.first:
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def emit(self, document: Any) -> None:
        """Writes the results, if JSON was asked for. NaN and Inf become null; `not_finite` says where they were."""
        if self.json_to is None or not self.first:
            return
        strange: dict[str, str] = {}
        document = finite(document, "", strange)
        if strange:
            document = {**document, "not_finite": strange} if isinstance(document, dict) else document
            self.warn(f"{len(strange)} numbers are NaN or infinite and null in the JSON, such as {next(iter(strange))}")
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        if self.json_to == "-":
            sys.stdout.write(text)
            return
        write_text(Path(self.json_to), text)

    def kernels(self, device: torch.device | None = None) -> None:
        """Prints which kernel computes each op on a device, and warns of those that are slow loops."""
        from visq.analysis.machine import kernels, slow_kernels
        from visq.device import described

        kind = "cpu" if device is None else device.type
        title = "kernels" if device is None or kind == "cpu" else f"kernels on {described(device)}"
        by_kernel: dict[str, list[str]] = {}
        for op, kernel in kernels(kind).items():
            by_kernel.setdefault(kernel, []).append(op)
        if len(by_kernel) == 1:
            self.say(f"{title}: {next(iter(by_kernel))} for every op")
        else:
            self.say(f"{title}: " + "; ".join(f"{kernel} ({', '.join(ops)})" for kernel, ops in by_kernel.items()))
        slow: dict[str, list[str]] = {}
        for op, why in slow_kernels(kind).items():
            slow.setdefault(why, []).append(op)
        for why, ops in slow.items():
            self.warn(f"{', '.join(ops)} run as slow loops ({why})")

    def skipped(self, names: Sequence[str]) -> None:
        """Says how many images could not be read."""
        if names:
            self.say(f"skipped {len(names)} image{'s' * (len(names) > 1)} that cannot be read: {', '.join(names[:3])}")


def check_file(option: str, path: Path) -> None:
    """Raises VisqError, before any work is done, when a file cannot be written."""
    folder = path.absolute().parent
    if path.is_dir():
        raise VisqError(f"{option} {path} is a folder; give a file's name")
    if not folder.is_dir():
        raise VisqError(f"{option} {path}: its folder does not exist")
    if not os.access(folder, os.W_OK):
        raise VisqError(f"{option} {path}: nothing can be written to its folder")


def check_folder(option: str, path: Path) -> None:
    """Raises VisqError, before any work is done, when a folder cannot be made or written to."""
    for there in (path.absolute(), *path.absolute().parents):
        if os.path.lexists(there):
            if not there.is_dir():
                raise VisqError(f"{option} {path}: {there} is no folder")
            if not os.access(there, os.W_OK):
                raise VisqError(f"{option} {path}: nothing can be written to {there}")
            return


def finite(value: Any, where: str, strange: dict[str, str]) -> Any:
    """Returns a value as JSON can have it: None for NaN and Inf, whose place goes to `strange`, such as `rows.3.top1`:
    `nan`."""
    if isinstance(value, dict):
        return {key: finite(item, f"{where}{key}.", strange) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item, f"{where}{index}.", strange) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        strange[where.rstrip(".")] = str(value)
        return None
    return value


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table in plain text."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    right = [all(_is_number(row[i]) for row in rows) and bool(rows) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(cells, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]


def _is_number(text: str) -> bool:
    return not text or text[0].isdigit() or text[0] in "+-<"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


def set_threads(threads: int | None) -> None:
    """Makes torch and the kernels use a number of threads; raises VisqError for one that makes no sense."""
    if threads is not None:
        import torch

        torch.set_num_threads(checked_threads(threads))
