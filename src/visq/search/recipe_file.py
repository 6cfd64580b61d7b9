"""Writes a choice of bits as a recipe: a few rules over the base, one for all sites that are rounded alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from visq.recipes import Recipe, Rule
from visq.recipes.catalog import make_recipe, parse_method
from visq.search.groups import KINDS, kinds_of


def recipe_text(name: str, base: Recipe, names: list[str], widths: Mapping[str, int], title: str) -> str:
    """Returns the YAML of a recipe that quantizes every site at its width.

    Sites at the most frequent width of their kind follow the base's rules; the others are named, beside the rule that
    the base has for them.

    Arguments:
        base: a packaged family in the scope that was searched.
        names: all sites of the network.
        widths: by site, of all sites whose bits are open.
    """
    kinds = kinds_of(base, names)
    usual = {kind: most_frequent([widths[site] for site, own in kinds.items() if own == kind]) for kind in KINDS}
    rules: dict[tuple[int, int], list[str]] = {}
    chosen = rules_of(base, names)
    for site, kind in kinds.items():
        if widths[site] != usual[kind]:
            rules.setdefault((chosen[site], widths[site]), []).append(site)
    sites = [said(base.scope.sites[index], width, own) for (index, width), own in sorted(rules.items())]
    document: dict[str, Any] = {
        "name": name,
        "base": base.family,
        "title": title,
        "bits": usual,
        "default_scope": base.scope_name,
    }
    if sites:
        document["scopes"] = {base.scope_name: {"sites": sites}}
    return yaml.safe_dump(document, sort_keys=False, width=120, default_flow_style=None)


def read_back(text: str, where: str) -> Recipe:
    """Returns the recipe in a text, as `get_recipe` does with a file."""
    family = parse_method(text, where)
    return make_recipe(family, family.bits, family.default_scope)


def most_frequent(widths: Sequence[int]) -> int:
    """Returns the most frequent width, the larger of equals; 8 where there is none."""
    return max(Counter(widths).items(), key=lambda item: (item[1], item[0]))[0] if widths else 8


def rules_of(recipe: Recipe, names: list[str]) -> dict[str, int]:
    """Returns the number of the rule that decides about each site."""
    found: dict[str, int] = {}
    for index, rule in enumerate(recipe.scope.sites):
        one = recipe.model_copy(update={"scope": recipe.scope.model_copy(update={"sites": (shown(rule),)})})
        found |= dict.fromkeys(one.resolve(names), index)
    return found


def shown(rule: Rule) -> Rule:
    """Returns a rule that matches the same sites and skips none."""
    return rule.model_copy(update={"skip": False})


def said(rule: Rule, width: int, sites: list[str]) -> dict[str, Any]:
    """Returns a rule for named sites at a number of bits, as YAML has it."""
    plain = rule.model_dump(mode="json", exclude_defaults=True, exclude={"match", "bits"})
    return {"match": sites, "bits": width, **plain}
