"""Runs the FP32 network before it is quantized, and names the first stage that gives NaN or Inf."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visq import parallel
from visq.data import Dataset
from visq.errors import VisqError
from visq.progress import Progress


@torch.no_grad()
def check_finite(model: Any, dataset: Dataset, *, batch_size: int = 32, progress: Progress | None = None) -> None:
    """Run a model over a data set, each rank over its share; VisqError naming the first stage that gives NaN or Inf."""
    model.eval()
    with (progress or Progress("silent")).task("checking FP32", total=len(dataset)) as task:
        for index, (images, _) in enumerate(dataset.batches(batch_size)):
            mine = index % parallel.world() == parallel.rank()
            if mine and not torch.isfinite(model(images)).all():
                where = first_bad_stage(model, images)
                raise VisqError(
                    f"the FP32 model gives NaN or Inf, first in {where}; check the checkpoint and the images"
                )
            task.advance(len(images))


def first_bad_stage(model: Any, images: Tensor) -> str:
    """The name of the first stage of a forward pass whose output is not finite."""
    state: tuple[Tensor, ...] = (images,)
    for stage in model.stages():
        state = stage.forward(*state)
        if not all(torch.isfinite(tensor).all() for tensor in state):
            return f"stage {stage.name}"
    return "no stage of a second pass; the model is not deterministic"
