"""From a calibrated network to one whose inference has the engine's bits."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from visq.simulation.layers import DEPLOYED

Network = TypeVar("Network", bound=nn.Module)


def deploy(model: Network) -> Network:
    """Let every layer of a calibrated network compute as the integer engine does, and return the network.

    Its logits are then those of the engine, bit for bit, as far as the network can be lowered: integer products are
    exact, and what is left in float32 is computed in the engine's order and by its functions. That holds on the CPU
    where no gradient is wanted; elsewhere the layers compute in PyTorch, as they do before.
    """
    for module in model.modules():
        if type(module) in DEPLOYED:
            module.forward = MethodType(_forward, module)
    return model


def undeploy(model: Network) -> Network:
    """Undo `deploy`: every layer computes as PyTorch does again."""
    for module in model.modules():
        if type(module) in DEPLOYED:
            module.__dict__.pop("forward", None)
    return model


def _forward(module: nn.Module, x: Tensor, *others: Tensor) -> Any:
    inputs = (x, *others)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *module.parameters(recurse=False)))
    if wanted or any(t.device.type != "cpu" for t in inputs):
        return type(module).forward(module, *inputs)
    return DEPLOYED[type(module)](module, *inputs)
