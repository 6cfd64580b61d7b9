"""The coverage table as it is shown: what the artifact says, and what computes each kind of site in the simulation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from visq.analysis.kernels_used import kernels_used
from visq.artifact import CoverageRow, coverage_rows
from visq.models.family import family_of
from visq.quant.site import WEIGHT, named_sites
from visq.recipes import Recipe

#: Weights are codes that were decoded once; nothing rounds them in a forward pass.
PACKED = "packed codes"
#: What no op of `visq.ops` computes.
TORCH = "torch"


def coverage(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Returns rows by kind of site: `kind, sites, targeted, quantized, bits, granularity, kernel`.

    `kernel` names what ran in a forward pass of the model, `<kernel> (<op>)` such as `cpp-avx512 (fake_quantize)`,
    `torch`, or `packed codes` for weights; it is empty where nothing is quantized.

    Raises:
        VisqError: a targeted site without a quantizer, and the other errors of `visq.artifact.coverage_rows`.
    """
    rows = coverage_rows(model, recipe)
    kind_of = family_of(model.config).kind_of
    used = kernels_used(model)
    names: dict[str, dict[str, None]] = {row.kind: {} for row in rows}  # in the order of the network, each once
    for name, site in named_sites(model):
        if site.quantizer is not None:
            names[kind_of(name)][PACKED if site.kind == WEIGHT else _named(used[name])] = None
    return [{**row.model_dump(mode="json"), "kernel": "; ".join(names[row.kind])} for row in rows]


def totals(rows: Iterable[CoverageRow]) -> tuple[int, int]:
    """Returns (sites quantized, sites targeted)."""
    rows = list(rows)
    return sum(row.quantized for row in rows), sum(row.targeted for row in rows)


def _named(calls: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{kernel} ({op})" for op, kernel in calls) or TORCH
