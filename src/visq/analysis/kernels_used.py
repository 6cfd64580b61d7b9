"""Watches one forward pass and says which kernel each site was computed by."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from visq.device import device_of
from visq.models.family import image_size
from visq.models.layers import SelectiveScan
from visq.ops import backends
from visq.quant.site import ACTIVATION, INNER, named_sites

#: Calls by (op, kernel).
Calls = Counter[tuple[str, str]]


@torch.no_grad()
def kernels_used(model: Any) -> dict[str, Calls]:
    """Returns the ops that ran for each quantized site but weights; empty where PyTorch alone computed it.

    A blank image goes through the network. What lives inside a scan has the calls of its scan, without those of the
    scan's own activations.
    """
    sites = dict(named_sites(model))
    watched: dict[str, nn.Module] = {
        name: site for name, site in sites.items() if site.kind == ACTIVATION and site.quantizer is not None
    }
    scans = {name: module for name, module in model.named_modules() if isinstance(module, SelectiveScan)}
    calls: dict[str, Calls] = {name: Counter() for name in (*watched, *scans)}
    running: dict[str, ExitStack] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def before(*_: object) -> None:
            running[name] = ExitStack()
            counted = running[name].enter_context(backends.recorded())
            running[name].callback(lambda: calls[name].update(counted))

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(lambda *_: running.pop(name).close(), always_call=True))

    try:
        for name, module in (watched | scans).items():
            watch(name, module)
        preprocess = model.card.preprocess
        size = image_size(model.config) or preprocess.image_size
        model.eval()(torch.zeros(1, preprocess.channels, size, size, device=device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    for scan in scans:
        for name in watched:
            if name.rpartition(".")[0] == scan:
                calls[scan].subtract(calls[name])
    found = {name: calls[name] for name in watched}
    for name, site in sites.items():
        if site.kind == INNER and site.quantizer is not None:
            found[name] = +calls[name.rpartition(".")[0]]
    return found
