"""Defines what a recipe may say: which sites are quantized, how, and after which transforms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from visq.errors import VisqError, first_problem
from visq.integer.spec import Named, Spec
from visq.recipes.roles import expand, matches

#: Granularities whose scales belong to positions in a sequence, and so to images of one size.
PER_POSITION = ("token", "token_groups", "step", "step_groups")

#: Parameters that make a transform work without positions.
_WITHOUT_POSITIONS: dict[str, dict[str, Any]] = {"reparameterize": {"steps": False}}


class Bits(BaseModel):
    """Holds the bits of weights, activations and the hidden state, each 2 to 8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: int = Field(default=8, ge=2, le=8)
    activation: int = Field(default=8, ge=2, le=8)
    state: int = Field(default=8, ge=2, le=8)

    def __str__(self) -> str:
        state = "" if self.state == self.activation else f"h{self.state}"
        return f"w{self.weight}a{self.activation}{state}"


class Rule(BaseModel):
    """Says how sites are quantized whose names match `match`; a later rule overrides an earlier one.

    Attributes:
        match: glob patterns over site names (`*` crosses dots; `*.head.in` also names `head.in`), or `@role.site` for
            what plays a part in any network (see `roles`); a pattern behind a `?` may match nothing, for networks that
            lack the layer.
        bits: `weight`, `activation` or `state` (the recipe's bits of that kind), or a number.
        skip: leave the sites in floating point, overriding earlier rules.
        others: as in `Spec`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: tuple[str, ...]
    bits: Literal["weight", "activation", "state"] | int = "activation"
    skip: bool = False
    symmetric: bool = True
    signed: bool = True
    narrow: bool = False
    granularity: Any = "tensor"
    codebook: Any = "uniform"
    estimator: Any = "minmax"

    @field_validator("match", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        patterns = (value,) if isinstance(value, str) else value
        if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
            return patterns
        try:
            return tuple(single for pattern in patterns for single in expand(pattern))
        except VisqError as error:
            raise ValueError(str(error)) from error

    def without_positions(self) -> Rule:
        """Returns the rule with one scale per tensor where it asks for scales per position."""
        kind = self.granularity.get("kind") if isinstance(self.granularity, dict) else self.granularity
        return self.model_copy(update={"granularity": "tensor"}) if kind in PER_POSITION else self

    def spec(self, bits: Bits) -> Spec:
        number = self.bits if isinstance(self.bits, int) else getattr(bits, self.bits)
        fields = {
            name: getattr(self, name)
            for name in ("symmetric", "signed", "narrow", "granularity", "codebook", "estimator")
        }
        return Spec(bits=number, **fields)


class Scope(BaseModel):
    """Says what a method rewrites, quantizes and tunes in one of its scopes.

    Attributes:
        transforms: applied before anything is observed; the network's function stays the same.
        sites: the rules.
        learners: run after the quantizers are in place.
        search_images: how many calibration images, drawn by the seed, the searches (every pass after the first) see;
            None means all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    transforms: tuple[Named, ...] = ()
    sites: tuple[Rule, ...] = ()
    learners: tuple[Named, ...] = ()
    search_images: int | None = Field(default=None, ge=1)

    @field_validator("transforms", "learners", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [{"name": item} if isinstance(item, str) else item for item in value]


class Method(BaseModel):
    """Holds a recipe file: one method, in one or more scopes, at any bits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    source: str = ""
    notes: str = ""
    bits: Bits = Bits()
    default_scope: str
    scopes: dict[str, Scope]


class Recipe(BaseModel):
    """Holds a method at given bits in a given scope, as calibration runs it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    title: str
    source: str
    scope_name: str
    bits: Bits
    scope: Scope

    def __repr__(self) -> str:
        return f"<visq.Recipe {self.name}: {self.title}, scope {self.scope_name}>"

    __str__ = __repr__

    def resolve(self, site_names: Iterable[str]) -> dict[str, Spec]:
        """Returns the spec of every targeted site, in the order of `site_names`.

        Raises:
            VisqError: a pattern that matches no site, or a rule whose spec is invalid.
        """
        names = list(site_names)
        chosen: dict[str, Rule] = {}
        for rule in self.scope.sites:
            for pattern in rule.match:
                matched = [name for name in names if matches(pattern.removeprefix("?"), name)]
                if not matched and not pattern.startswith("?"):
                    examples = ", ".join(names[:4]) if names else "none"
                    raise VisqError(
                        f"recipe {self.name}: pattern '{pattern}' matches no site of this model "
                        f"(its sites: {examples}, ...)"
                    )
                chosen.update(dict.fromkeys(matched, rule))
        specs: dict[str, Spec] = {}
        for name in names:
            if name in chosen and not chosen[name].skip:
                try:
                    specs[name] = chosen[name].spec(self.bits)
                except ValueError as error:
                    raise VisqError(f"recipe {self.name}, site {name}: {first_problem(error)}") from error
        return specs

    def positional(self, site_names: Iterable[str]) -> list[str]:
        """Returns the names of sites and transforms that belong to positions, and so to images of one size."""
        sites = [name for name, spec in self.resolve(site_names).items() if spec.granularity.kind in PER_POSITION]
        return sites + [named.name for named in self.scope.transforms if _without_positions(named) != named]

    def without_positions(self) -> Recipe:
        """Returns the recipe for networks that take images of any size.

        Scales per token or step become one per tensor, and a reparameterization works by channel and state only. A
        recipe that has none of these returns itself.
        """
        scope = self.scope.model_copy(
            update={
                "transforms": tuple(_without_positions(named) for named in self.scope.transforms),
                "sites": tuple(rule.without_positions() for rule in self.scope.sites),
            }
        )
        if scope == self.scope:
            return self
        names = {"name": f"{self.name}-without-positions", "title": f"{self.title}; without scales per position"}
        return self.model_copy(update={**names, "scope": scope})

    def digest(self) -> str:
        """Returns the sha256 of everything the recipe says."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _without_positions(named: Named) -> Named:
    return Named(name=named.name, **{**named.params, **_WITHOUT_POSITIONS.get(named.name, {})})
