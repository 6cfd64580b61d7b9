"""A Vim of one block, and the run of that block that transforms see."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from visq.integer.spec import Spec
from visq.models import create_model
from visq.models.vim import VisionMamba
from visq.stages.stage_run import StageRun
from visq.stages.stream import Stream


def network() -> VisionMamba:
    torch.manual_seed(0)
    model = create_model(
        "vim", image_size=8, patch_size=4, stride=4, channels=1, embed_dim=12, depth=1, d_state=4, num_classes=3
    )
    model.layers[0].norm.weight.data.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


def stage_run(model: VisionMamba, images: Tensor, folder: Path) -> StageRun:
    """The first block's run, all six linears targeted."""
    stage = model.stages()[1]
    inputs = Stream.create(folder / "inputs")
    inputs.append(model.embed(images))
    inputs.close()
    names = ("in_proj", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b", "out_proj")
    specs = {f"layers.0.mixer.{name}.{end}": Spec(bits=8) for name in names for end in ("in", "weight")}
    return StageRun(model, stage, [], inputs, inputs, specs, None, 0)
