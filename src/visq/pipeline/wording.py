"""Says in words what a self-check found."""

from __future__ import annotations

from visq.artifact import Agreement, Check

#: What each verdict means for the user.
MEANING = {
    "good": "it decides as FP32 does",
    "doubtful": "measure it on labelled images with `visq eval` before you use it",
    "broken": "do not use it; `visq diagnose` shows where it loses, docs/self-check.md what helps",
}


#: The same for a network that returns images instead of decisions; `broken` means the same.
_OF_IMAGES = {
    "good": "its images are close to FP32's",
    "doubtful": "measure its PSNR with `visq eval --hr --lr` before you use it",
}


def meaning(check: Check) -> str:
    """Returns what a verdict means for the user."""
    own = _OF_IMAGES if check.calibration.agree is None else {}
    return own.get(check.verdict, MEANING[check.verdict])


def check_lines(check: Check, made: str = "") -> list[str]:
    """Returns the block that the command line prints; `made` says how the check was made."""
    lines = [f"self-check: {check.verdict} - {meaning(check)}{made}"]
    if check.problem is not None:
        lines.append(f"  problem: {check.problem}")
    lines.append(f"  calibration: {described(check.calibration)}")
    if check.held_out is None:
        lines.append("  held out: no images; calibration images alone flatter a network that was fitted to them")
    else:
        lines.append(f"  held out: {described(check.held_out)}")
    sites = [f"{site.name} ({site.bits} bits, {_db(site.sqnr_db)})" for site in check.worst_sites]
    if sites:
        lines.append(f"  worst sites: {', '.join(sites)}")
    return lines


def described(found: Agreement) -> str:
    """Returns `253 of 256 decisions are FP32's (98.8 %), logits 21.4 dB`."""
    if not found.images:
        return "not run"
    words = []
    if found.agree is not None:
        of = "decisions" if found.positions is None else f"decisions at positions of {found.images} images"
        share = 100 * found.agree / found.decisions
        words.append(f"{found.agree} of {found.decisions} {of} are FP32's ({share:.1f} %)")
        words.append(f"logits {_db(found.sqnr_db, 'equal')}")
    else:
        words.append(f"{found.images} images, SQNR {_db(found.sqnr_db, 'equal')}, PSNR {_db(found.psnr_db, 'equal')}")
    if found.non_finite:
        words.append(f"{found.non_finite} images give NaN or Inf")
    return ", ".join(words)


def _db(value: float | None, none: str = "NaN") -> str:
    return none if value is None else f"{value:.1f} dB"
