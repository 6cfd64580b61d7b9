"""From a calibrated network to one whose inference has the engine's bits."""

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
    """Lets every layer of a calibrated network compute as the integer engine does, and returns the network.

    Its logits are then those of the engine, bit for bit, as far as the network can be lowered: integer products are
    exact, and what is left in float32 is computed in the engine's order and by its functions. Where a gradient is
    wanted, the layers compute in PyTorch. A device that has no kernel for this arithmetic is refused in the forward
    pass, and so are images that the engine refuses.
    """
    for module in model.modules():
        if deployed(type(module)) is not None:
            module.forward = MethodType(_forward, module)
    return refuse_bad_images(model)


def undeploy(model: Network) -> Network:
    """Undoes `deploy`: every layer computes as PyTorch does again."""
    for module in model.modules():
        if deployed(type(module)) is not None:
            module.__dict__.pop("forward", None)
    accept_all_images(model)
    return model


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
