"""Where the error arises: stages, kinds of sites, the worst sites, the scans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from visq.models.family import family_of
from visq.quant.site import named_sites
from visq.report.artifact import steps

Row = dict[str, Any]

#: Sites shown with histograms.
WORST = 8
#: Points of a line along a scan; longer scans are drawn by the largest error of neighbours.
POINTS = 128


def site_sections(model: Any, diagnosis: Row) -> Row:
    """Returns the report's part that `visq.analysis.diagnose` measures."""
    kind_of = family_of(model.config).kind_of
    quantizers = {name: site.quantizer for name, site in named_sites(model)}
    sites = [{**row, "kind": kind_of(row["name"])} for row in diagnosis["sites"]]
    return {
        "images": diagnosis["images"],
        "stages": diagnosis["stages"],
        "kinds": kind_rows(sites),
        "worst": [worst_row(quantizers[row["name"]], row) for row in worst(sites)],
        "measured": sum(row["sqnr_db"] is not None for row in sites),
        "scans": [scan_row(row) for row in diagnosis["scans"]],
    }


def worst(sites: Sequence[Row]) -> list[Row]:
    """Returns the sites with NaN or infinity, then those with the lowest SQNR, lowest first."""
    measured = [row for row in sites if row["sqnr_db"] is not None or row["nonfinite"]]
    return sorted(measured, key=lambda row: (-row["nonfinite"], row["sqnr_db"] or 0.0, row["name"]))[:WORST]


def worst_row(quantizer: Any, row: Row) -> Row:
    """Returns a site's row with its histograms and the spread of its scales."""
    scales = steps(quantizer)
    keys = (
        "name",
        "kind",
        "bits",
        "granularity",
        "codebook",
        "sqnr_db",
        "nonfinite",
        "clipped",
        "range_used",
        "histogram",
    )
    spread = {"scales": scales.numel(), "smallest": float(scales.min()), "largest": float(scales.max())}
    return {key: row[key] for key in keys} | spread


def kind_rows(sites: Sequence[Row]) -> list[Row]:
    """Returns SQNR, clipping and use of the range by kind of site, worst kind first."""
    kinds: dict[str, list[Row]] = {}
    for row in sites:
        kinds.setdefault(row["kind"], []).append(row)
    rows = []
    for kind, here in kinds.items():
        sqnr = [row["sqnr_db"] for row in here if row["sqnr_db"] is not None]
        clipped = [row["clipped"] for row in here if row["clipped"] is not None]
        rows.append(
            {
                "kind": kind,
                "sites": len(here),
                "lowest_sqnr_db": min(sqnr, default=None),
                "median_sqnr_db": median(sqnr) if sqnr else None,
                "most_clipped": max(clipped, default=None),
                "least_range_used": min(row["range_used"] for row in here),
            }
        )
    return sorted(rows, key=lambda row: (row["lowest_sqnr_db"] is None, row["lowest_sqnr_db"] or 0.0, row["kind"]))


def scan_row(row: Row) -> Row:
    """Returns the error along one scan: lines of at most `POINTS` points, the last and the worst step.

    A step whose error is NaN or infinite is None, and the worst.
    """
    found: Row = {"name": row["name"], "steps": len(row["y_error"])}
    for what in ("h", "y"):
        values = row[f"{what}_error"]
        worst_step = max(range(len(values)), key=lambda step: badness(values[step]))
        found[f"{what}_error"] = thinned(values)
        found[f"{what}_last"] = values[-1]
        found[f"{what}_worst"] = values[worst_step]
        found[f"{what}_worst_step"] = 1 + worst_step
    return found


def thinned(values: Sequence[float | None]) -> list[float | None]:
    """Returns at most `POINTS` values: the worst of neighbours."""
    count = min(len(values), POINTS)
    edges = [len(values) * i // count for i in range(count + 1)]
    return [max(values[first:last], key=badness) for first, last in pairwise(edges)]


def badness(error: float | None) -> float:
    """Returns an error for comparisons; None, which stands for NaN, is the worst."""
    return math.inf if error is None else error
