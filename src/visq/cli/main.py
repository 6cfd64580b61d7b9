"""Runs a command line. Every way it can end becomes an exit code and at most one line on stderr."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, NoReturn, TextIO

from visq.errors import VisqError

#: Warnings that are printed; more of them are only counted.
MOST_WARNINGS = 5
#: Characters of a line on stderr; a message may quote what a file holds.
LONGEST = 1000

#: An idle thread of OpenMP looks for work this often, for about 20 microseconds, and then sleeps. With libgomp's own
#: number it spins for milliseconds, and on a busy machine it holds the processor of the thread that it waits for.
SPINS = "1000"
#: The commands that time PyTorch leave its threads as every other program has them.
TIMES_OTHERS = ("bench", "report")

_HINTS = {
    "quantize": "; the same command with --resume goes on from here",
    "train": "; the same command with --resume goes on from the last checkpoint",
    "search": "; the same command goes on from here",
    "reproduce": "; the same command goes on from here",
    "compare": "; with --json, the same command keeps the finished rows",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs `visq` and exits: 0 on success, 1 on errors, 2 on wrong usage, 130 on Ctrl-C, 143 on SIGTERM."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code."""
    debug = "--debug" in arguments
    arguments = [_at_home(argument) for argument in arguments]
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if command not in TIMES_OTHERS and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # is read when PyTorch is imported
    with _Warnings(), _Termination() as termination:
        try:
            from typer.main import get_command

            from visq.cli.app import app

            code: Any = get_command(app).main(arguments, prog_name="visq", standalone_mode=False)
            sys.stdout.flush()
        except KeyboardInterrupt:
            code = 130
        except BrokenPipeError:
            # The reader went away (`visq models | head`). Python's last flush on exit must not fail either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            if debug:
                traceback.print_exc()
            return _explain(error, command)
    if code == 130:
        _line(f"{'terminated' if termination.came else 'interrupted'}{_HINTS.get(command, '')}")
        return 143 if termination.came else 130
    return int(code or 0)


def _at_home(argument: str) -> str:
    """Returns an argument with `~` replaced by the user's folder, also in `--out=~/runs`, where no shell does."""
    option, equals, value = argument.partition("=")
    if argument.startswith("--") and equals and value.startswith("~"):
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(argument) if argument.startswith("~") else argument


def _explain(error: Exception, command: str) -> int:
    """Prints one line about an error and returns the exit code."""
    if isinstance(error, VisqError):
        _line(f"error: {error}")
        return 1
    if hasattr(error, "format_message"):  # wrong usage, said by typer
        unknown = type(error).__name__ == "NoSuchCommand" or "No such command" in error.format_message()
        help_of = "visq" if unknown or not command else f"visq {command}"
        _line(f"error: {error.format_message().rstrip('.')} ({_usage(error)}see `{help_of} --help`)")
        return int(getattr(error, "exit_code", 2))
    if type(error).__name__ == "Abort":
        return 130
    _line(f"error: {type(error).__name__}: {error}; this is not expected, use --debug for the traceback")
    return 1


def _usage(error: Exception) -> str:
    """Returns the usage of a command that takes arguments, for whoever gave an option in their place; "" else."""
    context = getattr(error, "ctx", None)
    if context is None or context.parent is None or type(error).__name__ not in ("NoSuchOption", "UsageError"):
        return ""
    words = context.get_usage().removeprefix("Usage: ").replace("{", "").replace("}", "")
    return "" if words.endswith("[OPTIONS]") else f"usage: {words}; "


def _line(text: str) -> None:
    line = " ".join(text.split())
    print(line if len(line) <= LONGEST else f"{line[:LONGEST]} ...", file=sys.stderr, flush=True)


class _Termination:
    """Makes SIGTERM end a command as Ctrl-C does, so that it keeps its state and says how to go on."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> _Termination:
        self._theirs = threading.current_thread() is not threading.main_thread()
        if not self._theirs:
            self._before = signal.signal(signal.SIGTERM, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._theirs:
            signal.signal(signal.SIGTERM, self._before)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


class _Warnings:
    """Prints Python's warnings as single lines on stderr, inside a `with` block."""

    def __init__(self) -> None:
        self.count = 0
        self.before = warnings.catch_warnings()

    def __enter__(self) -> None:
        self.before.__enter__()
        warnings.showwarning = self.show
        # Commands name all slow loops in one line themselves.
        warnings.filterwarnings("ignore", message="visq: .* runs as a slow loop")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.before.__exit__(kind, error, trace)
        if self.count > MOST_WARNINGS:
            _line(f"warning: {self.count - MOST_WARNINGS} more warnings like these")

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        self.count += 1
        if self.count <= MOST_WARNINGS:
            _line(f"warning: {message}")
