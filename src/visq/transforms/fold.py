"""Moves a factor per channel from a norm's weight to the linear that reads the norm; no output changes."""

from __future__ import annotations

import torch
from torch import Tensor

from visq.models.layers import LayerNorm, Linear, RMSNorm
from visq.stages.stage_run import StageRun


def norm_before(run: StageRun, path: str) -> RMSNorm | LayerNorm | None:
    """Returns the norm whose output only the linear at `path` reads; the model declares it in `norms_before`."""
    for prefix in run.stage.modules:
        declared = getattr(run.model.get_submodule(prefix), "norms_before", {})
        name = declared.get(path.removeprefix(f"{prefix}."))
        if name is not None:
            norm = run.model.get_submodule(f"{prefix}.{name}")
            assert isinstance(norm, RMSNorm | LayerNorm)
            return norm
    return None


@torch.no_grad()
def divide_input(norm: RMSNorm | LayerNorm, layer: Linear, factor: Tensor) -> None:
    """Divides the layer's input by `factor` [C] and multiplies its weight by it."""
    norm.weight.div_(factor)
    if isinstance(norm, LayerNorm):
        norm.bias.div_(factor)
    layer.weight.mul_(factor)
