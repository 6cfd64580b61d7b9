"""Says which weights of a network stay in floating point, why, and how to change it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from visq.errors import VisqError
from visq.models.family import family_of
from visq.models.layers import CausalConv1d, Conv2d, Linear
from visq.quant.site import WEIGHT, Site, named_sites
from visq.recipes import Recipe
from visq.recipes.catalog import make_recipe, packaged_methods

#: PyTorch's layers with weights -> what takes their place.
WITHOUT_SITES: dict[type[nn.Module], str] = {
    nn.Linear: "visq.models.layers.Linear",
    nn.Conv1d: "visq.models.layers.CausalConv1d, which takes [B, L, C]",
    nn.Conv2d: "visq.models.layers.Conv2d, which takes [B, H, W, C]",
    nn.ConvTranspose2d: "a Conv2d and a PixelShuffle of visq.models.layers",
    nn.MultiheadAttention: "Linear layers of visq.models.layers around the attention",
    nn.Embedding: "a parameter of its own",
}


@dataclass(frozen=True)
class LeftOut:
    """Weights that stay in floating point.

    Attributes:
        kind, count: their name without layers and directions, and how many there are.
        reason, change: why, and what quantizes them.
    """

    kind: str
    count: int
    reason: str
    change: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.count}): {self.reason}; {self.change}"


def left_out(model: Any, recipe: Recipe) -> list[LeftOut]:
    """Returns the weights of products and convolutions that a recipe leaves, by kind, in the order of the network."""
    kind_of = family_of(model.config).kind_of
    sites = dict(named_sites(model))
    targeted = recipe.resolve(sites)
    elsewhere = dict(_other_scopes(recipe, list(sites)))
    found: dict[tuple[str, str, str], int] = {}
    for name, site in sites.items():
        if site.kind == WEIGHT and name not in targeted and not name.endswith("a_log"):
            module = model.get_submodule(name.rpartition(".")[0])
            key = (kind_of(name), *_why_site(kind_of(name), name, module, recipe, elsewhere))
            found[key] = found.get(key, 0) + 1
    for name, module in _without_sites(model):
        key = (kind_of(f"{name}.weight"), f"{type(module).__name__} of PyTorch has no sites", _instead(module))
        found[key] = found.get(key, 0) + 1
    return [LeftOut(kind, count, reason, change) for (kind, reason, change), count in found.items()]


def _why_site(kind: str, name: str, module: nn.Module, recipe: Recipe, elsewhere: dict[str, str]) -> tuple[str, str]:
    """Returns why a recipe leaves a weight site, and what would quantize it."""
    if name in elsewhere:
        return f"scope {recipe.scope_name} leaves it", f"take {elsewhere[name]}"
    role = _role(module)
    pattern = f"?*.{kind.rpartition('.')[0]}"
    return (
        "no role of the recipe names it",
        f'add roles={{"{role}": ("{pattern}",)}} to its family, or a rule to the recipe',
    )


def _role(module: nn.Module) -> str:
    """Returns the role that fits a layer by its type."""
    if isinstance(module, CausalConv1d) or (isinstance(module, Conv2d) and module.groups > 1):
        return "depthwise"
    return "linears" if isinstance(module, Linear) else "ends"


def _other_scopes(recipe: Recipe, names: list[str]) -> Iterator[tuple[str, str]]:
    """Yields, for sites that another scope of the packaged method quantizes, the name and that recipe's name."""
    method = packaged_methods().get(recipe.family)
    if method is None:
        return
    for scope in method.scopes:
        if scope == recipe.scope_name:
            continue
        other = make_recipe(method, recipe.bits, scope)
        try:
            found = other.resolve(names)
        except VisqError:  # a scope that does not fit this network
            continue
        for name in found:
            yield name, other.name


def _without_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields PyTorch's own layers: they have weights, and no sites."""
    kinds = tuple(WITHOUT_SITES)
    for name, module in model.named_modules():
        found: nn.Module = module
        if isinstance(found, kinds) and not any(isinstance(child, Site) for child in found.children()):
            yield name, found


def _instead(module: nn.Module) -> str:
    return next(f"take {other}" for kind, other in WITHOUT_SITES.items() if isinstance(module, kind))
