"""Gives the verdict of a self-check. docs/self-check.md says how its thresholds were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from visq.artifact import Agreement

Verdict = Literal["good", "doubtful", "broken"]

#: Verdicts from the best to the worst.
VERDICTS: tuple[Verdict, ...] = ("good", "doubtful", "broken")


@dataclass(frozen=True)
class Threshold:
    """Holds the least that a set of images must reach for a verdict.

    Attributes:
        agreement: share of the decisions that are FP32's.
        sqnr_db: of the logits.
        restoration_db: SQNR of the outputs of a network without classes.
    """

    agreement: float
    sqnr_db: float
    restoration_db: float


GOOD = Threshold(agreement=0.95, sqnr_db=15.0, restoration_db=30.0)
DOUBTFUL = Threshold(agreement=0.75, sqnr_db=6.0, restoration_db=20.0)


def verdict(found: Sequence[Agreement]) -> Verdict:
    """Returns the worst verdict of several sets of images."""
    return max((_of(agreement) for agreement in found), key=VERDICTS.index)


def below(found: Verdict, least: Verdict) -> bool:
    """Returns whether a verdict is worse than `least`."""
    return VERDICTS.index(found) > VERDICTS.index(least)


def _of(found: Agreement) -> Verdict:
    if found.non_finite:
        return "broken"
    if _reaches(found, GOOD):
        return "good"
    return "doubtful" if _reaches(found, DOUBTFUL) else "broken"


def _reaches(found: Agreement, least: Threshold) -> bool:
    if found.agree is None:
        return found.sqnr_db is None or found.sqnr_db >= least.restoration_db
    enough = found.agree >= least.agreement * found.decisions
    return enough and (found.sqnr_db is None or found.sqnr_db >= least.sqnr_db)
