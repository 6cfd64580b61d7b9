"""Prints the self-check, and ends a command whose result is not good enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from visq.cli.output import Output
from visq.errors import VisqError

if TYPE_CHECKING:
    from visq.artifact import Check
    from visq.pipeline.verdict import Verdict

#: Exit code of `visq quantize --fail-below`; the artifact is there.
BELOW = 3


def print_check(output: Output, check: Check, made: str = "") -> None:
    """Prints the block of a self-check; `made` says how it was made."""
    from visq.pipeline.wording import check_lines

    for line in check_lines(check, made):
        output.say(line)


def least_verdict(text: str | None, check: bool) -> Verdict | None:
    """Returns what `--fail-below` asks for; raises VisqError for another word, or without a check."""
    if text is None:
        return None
    if not check:
        raise VisqError("--fail-below needs the self-check; leave out --no-check")
    if text == "good":
        return "good"
    if text == "doubtful":
        return "doubtful"
    raise VisqError(f"--fail-below takes good or doubtful, not '{text}'")


def stop_below(output: Output, check: Check | None, least: Verdict | None, out: object) -> None:
    """Ends the command with exit code 3 where a verdict is worse than `least`."""
    from visq.pipeline.verdict import below

    if check is not None and least is not None and below(check.verdict, least):
        output.warn(f"the self-check says {check.verdict}, which is below {least}; the artifact is kept in {out}")
        raise typer.Exit(BELOW)
