"""Groups the sites that one tensor feeds: they get their bits together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visq.integer.spec import Spec
from visq.models.layers import Linear
from visq.quant.site import ACTIVATION, WEIGHT, named_sites, site_parameter
from visq.recipes import Recipe
from visq.stages.stage_run import belongs

#: The words a rule has for bits, in the order of a recipe's name.
KINDS = ("weight", "activation", "state")


@dataclass(frozen=True)
class Group:
    """Holds sites that move together.

    Attributes:
        kind: which of the recipe's bits it takes: `weight`, `activation` or `state`.
        sites: names in the order of the network.
        stage: number of the stage that runs them.
        values: parameters of a weight; 0 for others.
        products: multiplications an image of a linear's weight; 0 for others.
    """

    kind: str
    sites: tuple[str, ...]
    stage: int
    values: int = 0
    products: int = 0

    @property
    def name(self) -> str:
        """Returns the first site's name."""
        return self.sites[0]


def find_groups(model: Any, recipe: Recipe, images: Tensor, kinds: Sequence[str] = KINDS) -> list[Group]:
    """Returns the groups of all sites whose bits the recipe leaves open, in the order of the network.

    Two activation sites of a stage belong together when they see the same values in any order: a flipped sequence and
    the scans of four directions are one tensor.

    Arguments:
        model: FP32.
        images: [1, channels, H, W], one calibration image.
        kinds: of bits that are searched.
    """
    known = kinds_of(recipe, [name for name, _ in named_sites(model)])
    open_sites = {name: kind for name, kind in known.items() if kind in kinds}
    stages = model.stages()
    seen = observe(model, images)
    together: dict[tuple[Any, ...], list[str]] = {}
    for name, site in named_sites(model):
        if name not in open_sites:
            continue
        stage = next(i for i, stage in enumerate(stages) if belongs(name, stage))
        same = seen[name][0] if site.kind == ACTIVATION and name in seen else name
        together.setdefault((stage, open_sites[name], same), []).append(name)
    sites = dict(named_sites(model))
    found = []
    for (stage, kind, _), names in together.items():
        values = products = 0
        for name in names:
            if sites[name].kind == WEIGHT:
                count = site_parameter(model, name, sites[name]).numel()
                owner = name.rpartition(".")[0]
                values += count
                if isinstance(model.get_submodule(owner), Linear):
                    products += count * seen[f"{owner}.in"][1]
        found.append(Group(kind, tuple(names), stage, values, products))
    return found


def kinds_of(recipe: Recipe, names: list[str]) -> dict[str, str]:
    """Returns, for every quantized site whose rule names no number, the bits that it takes."""
    low, high = (at_bits(recipe, dict.fromkeys(KINDS, bits)).resolve(names) for bits in (2, 3))
    moves = [name for name in low if low[name] != high[name]]
    found: dict[str, str] = {}
    for kind in KINDS:
        changed = at_bits(recipe, {**dict.fromkeys(KINDS, 2), kind: 3}).resolve(names)
        found |= {name: kind for name in moves if changed[name] != low[name]}
    return found


def at_bits(recipe: Recipe, bits: Mapping[str, int]) -> Recipe:
    """Returns the recipe at other bits."""
    return recipe.model_copy(update={"bits": type(recipe.bits)(**bits)})


def specs_of(recipe: Recipe, names: list[str], bits: int) -> dict[str, Spec]:
    """Returns the spec of every site with all open bits at one number."""
    return at_bits(recipe, dict.fromkeys(KINDS, bits)).resolve(names)


@torch.no_grad()
def observe(model: Any, images: Tensor) -> dict[str, tuple[str, int]]:
    """Returns, for every activation site that runs, a digest of its values in ascending order, and its rows."""
    found: dict[str, tuple[str, int]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            ordered = x.flatten().sort().values.contiguous()
            digest = hashlib.sha256(ordered.numpy().tobytes()).hexdigest()
            found[name] = digest, x.numel() // x.shape[-1]

        return look

    handles = [
        site.register_forward_pre_hook(hook(name)) for name, site in named_sites(model) if site.kind == ACTIVATION
    ]
    try:
        model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
