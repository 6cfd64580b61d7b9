"""Runs a network over a data set and keeps its outputs; the FP32 network is checked on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visq import parallel
from visq.data import Dataset
from visq.device import device_of, on_its_device
from visq.errors import VisqError
from visq.progress import Progress

#: Outputs of networks without classes are images, and so many of them are kept.
MOST_IMAGES = 16


@torch.no_grad()
def outputs(
    network: Callable[[Tensor], Tensor],
    dataset: Dataset,
    *,
    batch_size: int,
    progress: Progress,
    name: str,
    keep: int | None = None,
    examine: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Returns a network's outputs [n, ...] in the order of the images. Ranks share the batches; all get the whole.

    Arguments:
        network: images [B, channels, H, W] -> outputs [B, ...].
        name: what the progress bar is called.
        keep: the first `keep` images' outputs are returned; None for all. No further batch is run unless examined.
        examine: called with the images and outputs of every batch of this rank.
    """
    own: dict[int, Tensor] = {}
    seen = 0
    with progress.task(name, total=len(dataset)) as task:
        for index, (images, _) in enumerate(dataset.batches(batch_size)):
            wanted = keep is None or seen < keep
            if not wanted and examine is None:
                break
            if index % parallel.world() == parallel.rank():
                found = network(images)
                if examine is not None:
                    examine(images, found)
                if wanted:
                    own[index] = found
            seen += len(images)
            task.advance(len(images))
    parts = {index: tensor for part in parallel.gather(own) for index, tensor in part.items()}
    return torch.cat([parts[index] for index in sorted(parts)])[:keep] if parts else torch.zeros(0)


def fp32_outputs(
    model: Any,
    dataset: Dataset,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    keep: int | None = None,
) -> Tensor:
    """Returns the outputs of an FP32 network, as `outputs` does.

    Raises:
        VisqError: an output holds NaN or Inf; names the first stage that gives them.
    """

    def examine(images: Tensor, found: Tensor) -> None:
        if not torch.isfinite(found).all():
            raise VisqError(
                f"the FP32 model gives NaN or Inf, first in {first_bad_stage(model, images)}; check the checkpoint "
                "and the images"
            )

    return outputs(
        on_its_device(model.eval()),
        dataset,
        batch_size=batch_size,
        progress=progress or Progress("silent"),
        name="checking FP32",
        keep=keep,
        examine=examine,
    )


@torch.no_grad()
def first_bad_stage(model: Any, images: Tensor) -> str:
    """Returns the name of the first stage of a forward pass whose output is not finite."""
    state: tuple[Tensor, ...] = (images.to(device_of(model)),)
    for stage in model.stages():
        state = stage.forward(*state)
        if not all(torch.isfinite(tensor).all() for tensor in state):
            return f"stage {stage.name}"
    return "no stage of a second pass; the model is not deterministic"
