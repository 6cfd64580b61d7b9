"""The coverage table as it is shown: what the artifact says, and by which kernel each kind of site is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from visq.analysis.machine import kernels
from visq.artifact import CoverageRow, coverage_rows
from visq.models.family import family_of
from visq.quant.site import INNER, WEIGHT, named_sites
from visq.recipes import Recipe


def coverage(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Rows by kind of site: `kind, sites, targeted, quantized, bits, granularity, kernel`.

    Raises:
        VisqError: a targeted site without a quantizer, and the other errors of `visq.artifact.coverage_rows`.
    """
    kind_of = family_of(model.config).kind_of
    kinds = {kind_of(name): site.kind for name, site in named_sites(model)}
    rows = coverage_rows(model, recipe)
    return [{**row.model_dump(mode="json"), "kernel": _kernel(row, kinds[row.kind])} for row in rows]


def totals(rows: Iterable[CoverageRow]) -> tuple[int, int]:
    """(sites quantized, sites targeted)."""
    rows = list(rows)
    return sum(row.quantized for row in rows), sum(row.targeted for row in rows)


def _kernel(row: CoverageRow, site_kind: str) -> str:
    if row.quantized == 0:
        return ""
    if site_kind == INNER:
        return kernels()["quantized_scan"]
    return "packed codes" if site_kind == WEIGHT else "torch"
