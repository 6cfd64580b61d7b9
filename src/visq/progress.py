"""One way to show that something long is running: a bar on a terminal, plain lines otherwise, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress

Mode = Literal["bar", "plain", "silent"]
#: Told the task's name, the units done, and the units in all (None: unknown).
Callback = Callable[[str, int, int | None], object]

#: Tasks shorter than this many seconds show nothing.
QUIET_SECONDS = 2.0
#: Seconds between two plain lines of one task.
PLAIN_INTERVAL = 10.0


class Progress:
    """Where long work reports.

    Bars go to stderr and vanish; plain lines go to stdout, so that a logged stderr holds errors only. Tasks may be
    nested.

        with progress.task("calibrating", total=24) as task:
            for block in blocks:
                ...
                task.advance(1, note=block.name)

    Arguments:
        mode: None picks `bar` when stderr is a terminal and `plain` otherwise.
        callback: is called whenever a task begins or goes on, in any mode.
    """

    def __init__(self, mode: Mode | None = None, callback: Callback | None = None) -> None:
        self.mode: Mode = mode or ("bar" if sys.stderr.isatty() else "plain")
        self.callback = callback
        self._rich: RichProgress | None = None
        self._open = 0

    def task(self, name: str, total: int | None = None) -> Task:
        """Returns a task of `total` units (None: unknown), to be used in a `with` block."""
        return Task(self, name, total)

    def say(self, line: str) -> None:
        """Prints a line of text, above the bars where there are any; nothing when silent."""
        if self.mode == "silent":
            return
        if self._rich is not None:
            self._rich.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def _start(self) -> RichProgress | None:
        self._open += 1
        if self.mode == "bar" and self._rich is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._rich = RichProgress(*columns, console=Console(stderr=True), transient=True)
            self._rich.start()
        return self._rich

    def _stop(self) -> None:
        self._open -= 1
        if self._open == 0 and self._rich is not None:
            self._rich.stop()
            self._rich = None


class Task:
    """A running task; see `Progress`."""

    def __init__(self, progress: Progress, name: str, total: int | None) -> None:
        self._progress, self._name, self._total, self._done = progress, name, total, 0

    def __enter__(self) -> Task:
        self._begin = self._printed = time.monotonic()
        self._rich = self._progress._start()
        if self._rich is not None:
            self._bar = self._rich.add_task(self._name, total=self._total, note="")
        self._tell()
        return self

    def advance(self, n: int = 1, note: str = "") -> None:
        """Counts `n` more units as done; `note` is shown beside the bar."""
        self._done += n
        self._tell()
        if self._rich is not None:
            self._rich.update(self._bar, advance=n, note=note)
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL:
            self._printed = time.monotonic()
            of = "" if self._total is None else f"/{self._total}"
            self._progress.say(f"{self._name}: {self._done}{of}" + (f" ({note})" if note else ""))

    def reach(self, done: int, note: str = "") -> None:
        """Sets the number of units done in all."""
        self.advance(done - self._done, note)

    def _tell(self) -> None:
        if self._progress.callback is not None:
            self._progress.callback(self._name, self._done, self._total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._begin
        if self._rich is not None:
            self._rich.remove_task(self._bar)
        self._progress._stop()
        if kind is None and seconds >= QUIET_SECONDS:
            self._progress.say(f"{self._name}: {self._done} in {seconds:.1f} s")
