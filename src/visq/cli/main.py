"""The entry point: every way a command can end becomes an exit code and at most one line on stderr."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn, TextIO

from visq.errors import VisqError

#: So many warnings are printed; more of them are counted.
MOST_WARNINGS = 5

_HINTS = {
    "quantize": "; the same command with --resume goes on from here",
    "train": "; the same command with --resume goes on from the last checkpoint",
    "compare": "; with --json, the same command keeps the finished rows",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `visq` and exit: 0 on success, 1 on errors, 2 on wrong usage, 130 on Ctrl-C."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    debug = "--debug" in arguments
    arguments = [_at_home(argument) for argument in arguments]
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    with _Warnings():
        try:
            from typer.main import get_command

            from visq.cli.app import app

            code: Any = get_command(app).main(arguments, prog_name="visq", standalone_mode=False)
            sys.stdout.flush()
        except KeyboardInterrupt:
            code = 130
        except BrokenPipeError:
            # The reader went away (`visq models | head`). Nothing may be written any more, not even when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            if debug:
                traceback.print_exc()
            return _explain(error, command)
    if code == 130:
        _line(f"interrupted{_HINTS.get(command, '')}")
    return int(code or 0)


def _at_home(argument: str) -> str:
    """An argument with `~` as the user's folder, also in `--out=~/runs`, where no shell replaces it."""
    option, equals, value = argument.partition("=")
    if argument.startswith("--") and equals and value.startswith("~"):
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(argument) if argument.startswith("~") else argument


def _explain(error: Exception, command: str) -> int:
    """One line about an error; returns the exit code."""
    if isinstance(error, VisqError):
        _line(f"error: {error}")
        return 1
    if hasattr(error, "format_message"):  # wrong usage, said by typer
        unknown = type(error).__name__ == "NoSuchCommand" or "No such command" in error.format_message()
        help_of = "visq" if unknown or not command else f"visq {command}"
        _line(f"error: {error.format_message()} (see `{help_of} --help`)")
        return int(getattr(error, "exit_code", 2))
    if type(error).__name__ == "Abort":
        return 130
    _line(f"error: {type(error).__name__}: {error}; this is not expected, use --debug for the traceback")
    return 1


def _line(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr, flush=True)


class _Warnings:
    """While it lasts, Python's warnings are single lines on stderr."""

    def __init__(self) -> None:
        self.count = 0
        self.before = warnings.catch_warnings()

    def __enter__(self) -> None:
        self.before.__enter__()
        warnings.showwarning = self.show
        # Slow loops are said by the commands themselves, for all ops at once.
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
