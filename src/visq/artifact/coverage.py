"""Counts by kind which sites of a model are quantized."""

from __future__ import annotations

from collections import Counter
from typing import Any

from visq.artifact.schema import CoverageRow
from visq.errors import VisqError
from visq.integer.spec import Spec, describe_granularity
from visq.models.family import family_of
from visq.quant.ladder import LadderQuantizer
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.site import Site, named_sites
from visq.recipes import Recipe


def spec_of(site: Site) -> Spec:
    """Returns the spec of a site's quantizer."""
    assert isinstance(site.quantizer, Quantizer | StateQuantizer | LadderQuantizer)
    return site.quantizer.spec


def coverage_rows(model: Any, recipe: Recipe) -> list[CoverageRow]:
    """Returns one row for each kind of site, in the order of the network, untargeted kinds included.

    Raises:
        VisqError: a pattern of the recipe matches nothing, a targeted site has no quantizer or one with other bits, or
            a site has a quantizer that the recipe does not name.
    """
    kind_of = family_of(model.config).kind_of
    sites = dict(named_sites(model))
    targeted = recipe.resolve(sites)
    found = {name: spec_of(site) for name, site in sites.items() if site.quantizer is not None}
    wrong = [name for name, spec in targeted.items() if name in found and found[name].bits != spec.bits]
    _refuse("targeted sites without a quantizer", [name for name in targeted if name not in found])
    _refuse("sites with a quantizer that the recipe does not name", [name for name in found if name not in targeted])
    _refuse("sites quantized at other bits than the recipe says", wrong)
    total = Counter(kind_of(name) for name in sites)
    wanted = Counter(kind_of(name) for name in targeted)
    done = Counter(kind_of(name) for name in found)
    bits: dict[str, set[int]] = {}
    granularity: dict[str, set[str]] = {}
    for name, spec in found.items():
        bits.setdefault(kind_of(name), set()).add(spec.code_bits)
        granularity.setdefault(kind_of(name), set()).add(describe_granularity(spec))
    return [
        CoverageRow(
            kind=kind,
            sites=total[kind],
            targeted=wanted[kind],
            quantized=done[kind],
            bits=tuple(sorted(bits.get(kind, ()))),
            granularity=tuple(sorted(granularity.get(kind, ()))),
        )
        for kind in total
    ]


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise VisqError(f"{what}: {', '.join(names[:5])}{more}; the result would not be what the recipe says")
