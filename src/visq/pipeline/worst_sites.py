"""Finds the sites of a quantized network that round worst."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from visq.artifact import LossySite
from visq.artifact.coverage import spec_of
from visq.models.family import family_of
from visq.models.layers import SelectiveScan
from visq.quant.site import ACTIVATION, INNER, WEIGHT, named_sites
from visq.quant.site_error import SiteError
from visq.simulation.scan_trace import trace

#: The channels' axis of what lives inside a scan: Abar and h are [B, L, C, N], Bbar is [B, L, N, C].
CHANNELS = {"abar": -2, "bbar": -1, "h": -2}


@torch.no_grad()
def worst_sites(model: Any, images: Tensor, count: int = 3) -> tuple[list[LossySite], Tensor]:
    """Returns the sites of lowest SQNR (see `SiteError`), worst first, and the network's outputs on the images.

    Activations are measured on what they receive in the quantized network. A weight's error was measured when it was
    rounded; weights of a loaded artifact have none.
    """
    errors = site_errors(model)
    hooks = [
        module.register_forward_pre_hook(_activation(errors[name]))
        for name, module in named_sites(model)
        if module.kind == ACTIVATION and name in errors
    ]
    hooks += [
        module.register_forward_pre_hook(_scan(name, errors))
        for name, module in model.named_modules()
        if isinstance(module, SelectiveScan) and any(f"{name}.{part}" in errors for part in CHANNELS)
    ]
    try:
        outputs: Tensor = model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: error.sqnr_db() for name, error in errors.items()}
    sites = dict(named_sites(model))
    found |= {
        name: site.rounding_db
        for name, site in sites.items()
        if site.kind == WEIGHT and site.quantizer is not None and site.rounding_db is not None
    }
    order = sorted(found, key=lambda name: (not math.isnan(found[name]), round(found[name], 2), name))
    kind_of = family_of(model.config).kind_of
    worst = [
        LossySite(name=name, kind=kind_of(name), bits=spec_of(sites[name]).code_bits, sqnr_db=_finite(found[name]))
        for name in order[:count]
    ]
    return worst, outputs


def site_errors(model: Any) -> dict[str, SiteError]:
    """Returns an empty sum for every quantized site but weights."""
    return {
        name: SiteError(site.quantizer, CHANNELS[name.rpartition(".")[2]] if site.kind == INNER else -1)
        for name, site in named_sites(model)
        if site.quantizer is not None and site.kind != WEIGHT
    }


def _activation(error: SiteError) -> Callable[..., None]:
    def hook(site: nn.Module, args: tuple[Tensor, ...]) -> None:
        error.observe(args[0])

    return hook


def _scan(name: str, errors: dict[str, SiteError]) -> Callable[..., None]:
    def hook(scan: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(scan, SelectiveScan)
        inside = trace(scan, *args)
        for part in CHANNELS:
            if f"{name}.{part}" in errors:
                errors[f"{name}.{part}"].observe(getattr(inside, part))

    return hook


def _finite(sqnr_db: float) -> float | None:
    """Returns decibels as JSON has them, to a hundredth."""
    return round(sqnr_db, 2) if math.isfinite(sqnr_db) else None
