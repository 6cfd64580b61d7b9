"""Tells how a run goes: one JSON line an epoch on disk, a bar or plain lines on the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from visq.files import write_text


class EpochLog:
    """The file `log.jsonl`, one object an epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_until(self, epoch: int) -> None:
        """Drops the lines after finished epoch `epoch`, half-written ones included: those epochs are trained again."""
        kept = [entry for entry in self.entries() if entry["epoch"] <= epoch]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def append(self, entry: dict[str, Any]) -> None:
        """Adds the line of one epoch."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """Returns all whole lines in order."""
        entries = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
            try:
                entry = json.loads(line)
                int(entry["epoch"])
            except (ValueError, TypeError, KeyError):  # a kill may have cut the last line off
                break
            entries.append(entry)
        return entries


class Reporter:
    """Shows a progress bar where standard error is a terminal, else a line an epoch; nothing when `show` is false."""

    def __init__(self, show: bool, epochs: int, steps: int, done: int) -> None:
        self.show = show
        self.epochs = epochs
        self._bar: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("training", total=epochs * steps, completed=done)

    def __enter__(self) -> Reporter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        elif self.show:
            print(line, file=sys.stderr, flush=True)

    def step(self, loss: float) -> None:
        """Moves the bar by one optimizer step."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"loss {loss:.3f}")

    def epoch(self, entry: dict[str, Any]) -> None:
        """Prints the line of an epoch, `entry` as it was logged."""
        scores = [f"{name} {entry[key]:.2f}" for name, key in _SCORES if entry.get(key) is not None]
        self.say(
            f"epoch {entry['epoch']}/{self.epochs}  loss {entry['train_loss']:.4f}  {'  '.join(scores)}  "
            f"lr {entry['lr']:.2e}  {entry['images_per_second']:.0f} images/s"
        )


_SCORES = (
    ("top-1", "top1_raw"),
    ("top-1 EMA", "top1_ema"),
    ("mean IoU", "mean_iou_raw"),
    ("mean IoU EMA", "mean_iou_ema"),
)
