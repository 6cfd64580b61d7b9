"""Switches a calibrated network between PyTorch's arithmetic and the integer engine's."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from visq.errors import VisqError
from visq.ops import backends
from visq.simulation.images import accept_all_images, refuse_bad_images
from visq.simulation.layers import deployed

Network = TypeVar("Network", bound=nn.Module)


def deploy(model: Network) -> Network:
    """Makes every layer of a calibrated network compute as the integer engine does, and returns the network.

    If the network can be lowered, its logits then equal the engine's bit for bit: integer products are exact, and
    float32 values are computed in the engine's order and by its functions. Layers still compute in PyTorch when a
    gradient is needed. The forward pass raises VisqError on a device without kernels for this arithmetic, and for
    images that the engine refuses.
    """
    for module in model.modules():
        if deployed(type(module)) is not None:
            module.forward = MethodType(_forward, module)
    return refuse_bad_images(model)


def undeploy(model: Network) -> Network:
    """Undoes `deploy`, so that every layer computes in PyTorch again. Returns the network."""
    for module in model.modules():
        if deployed(type(module)) is not None:
            module.__dict__.pop("forward", None)
    accept_all_images(model)
    return model


def move(model: nn.Module, device: torch.device, bits: bool = True) -> bool:
    """Moves a network, and returns whether it still computes what it did.

    A deployed one is undeployed where the device has no kernels with the engine's bits; its layers then round as their
    quantizers do, in PyTorch's float32.

    Arguments:
        bits: false to undeploy it on any device but the CPU, where the engine's bits are slow to compute.
    """
    exact = device.type == "cpu" or (bits and all(backends.usable(op, device.type) for op in ("exact", "fixed_scan")))
    kept = exact or not any("forward" in module.__dict__ for module in model.modules())
    if not kept:
        refuse_bad_images(undeploy(model))
    model.to(device)
    return kept


def _forward(module: nn.Module, x: Tensor, *others: Tensor) -> Any:
    inputs = (x, *others)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *module.parameters(recurse=False))):
        return type(module).forward(module, *inputs)
    if not backends.usable("exact", x.device.type):
        raise VisqError(
            f"a deployed network computes with the integer engine's arithmetic, which has no kernel for {x.device}; "
            "move the network and its images to the CPU, or call visq.simulation.undeploy(model) first"
        )
    compute = deployed(type(module))
    assert compute is not None  # deploy() replaced the forward of these classes only
    return compute(module, *inputs)
