"""Prints the self-check, and ends a command whose result is not good enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from visq.cli.output import Output
from visq.errors import VisqError

if TYPE_CHECKING:
    from visq.artifact import Agreement, Check
    from visq.pipeline.verdict import Verdict

#: Exit code of `visq quantize --fail-below`; the artifact is there.
BELOW = 3

_MEANING = {
    "good": "it decides as FP32 does",
    "doubtful": "measure it on labelled images with `visq eval` before you use it",
    "broken": "do not use it; `visq diagnose` shows where it loses, docs/self-check.md what helps",
}


def print_check(output: Output, check: Check, made: str = "") -> None:
    """Prints the block of a self-check; `made` says how it was made."""
    output.say(f"self-check: {check.verdict} - {_MEANING[check.verdict]}{made}")
    if check.problem is not None:
        output.say(f"  problem: {check.problem}")
    output.say(f"  calibration: {described(check.calibration)}")
    if check.held_out is None:
        output.say("  held out: no images; calibration images alone flatter a network that was fitted to them")
    else:
        output.say(f"  held out: {described(check.held_out)}")
    sites = [f"{site.name} ({site.bits} bits, {_db(site.sqnr_db)})" for site in check.worst_sites]
    if sites:
        output.say(f"  worst sites: {', '.join(sites)}")


def described(found: Agreement) -> str:
    """Returns `253 of 256 decisions are FP32's (98.8 %), logits 21.4 dB`."""
    if not found.images:
        return "not run"
    words = []
    if found.agree is not None:
        share = 100 * found.agree / found.images
        words.append(f"{found.agree} of {found.images} decisions are FP32's ({share:.1f} %)")
        words.append(f"logits {_db(found.sqnr_db, 'equal')}")
    else:
        words.append(f"{found.images} images, SQNR {_db(found.sqnr_db, 'equal')}, PSNR {_db(found.psnr_db, 'equal')}")
    if found.non_finite:
        words.append(f"{found.non_finite} images give NaN or Inf")
    return ", ".join(words)


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


def _db(value: float | None, none: str = "NaN") -> str:
    return none if value is None else f"{value:.1f} dB"
