"""Measures the accuracy of a model on labelled images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visq import parallel
from visq.data import Dataset
from visq.device import device_of, on_its_device, reproducible
from visq.errors import VisqError
from visq.models.family import image_classes, num_classes
from visq.pipeline.outputs import first_bad_stage
from visq.progress import Progress


@dataclass(frozen=True)
class Evaluation:
    """What a model got right.

    Attributes:
        n: images that were read; `skipped` names the others.
        top1, top5: in percent (top5 of a model with fewer than five classes counts all of them).
        seconds: wall time, reading images included.
        predictions, labels: [n] int64, in the order of the data set, for paired tests.
    """

    n: int
    top1: float
    top5: float
    seconds: float
    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]
    skipped: tuple[str, ...] = ()

    @property
    def images_per_second(self) -> float:
        return self.n / self.seconds if self.seconds > 0 else 0.0

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.equal(self.predictions, self.labels)


@torch.no_grad()
def evaluate(
    model: Any,
    dataset: Dataset,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    progress: Progress | None = None,
    name: str = "evaluating",
) -> Evaluation:
    """Returns top-1 and top-5 of a model, FP32 or simulated, in eval mode. Under torchrun ranks share the images, and
    each returns the whole result.

    Arguments:
        model: with `stages()`, on any device; images [B, C, H, W] -> logits [B, classes].
        limit: at most so many images, chosen at random but always the same ones.
        name: what the progress bar is called.
    Raises:
        VisqError: images without labels, labels that are not the model's, logits that are not finite.
    """
    dataset = limited(dataset, limit)
    check_labels(model, dataset)
    model.eval()
    network = on_its_device(model)
    top1 = top5 = 0
    predictions: list[Tensor] = []
    labels: list[Tensor] = []
    start = time.perf_counter()
    own = own_part(dataset, batch_size)
    task_of = (progress or Progress("silent")).task
    with reproducible(device_of(model), batch_size), task_of(name, total=len(own) if own else 0) as task:
        for images, target in own.batches(batch_size) if own else ():
            logits = network(images)
            if not torch.isfinite(logits).all():
                raise VisqError(f"the logits hold NaN or Inf, which first arise in {first_bad_stage(model, images)}")
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            hits = best == target[:, None]
            top1 += int(hits[:, 0].sum())
            top5 += int(hits.sum())
            predictions.append(best[:, 0])
            labels.append(target)
            task.advance(len(images))
    parts = parallel.gather((top1, top5, predictions, labels, own.skipped if own else []))
    seconds = time.perf_counter() - start
    found = torch.cat([batch for part in parts for batch in part[2]]).numpy()
    true = torch.cat([batch for part in parts for batch in part[3]]).numpy()
    top1, top5, n = sum(part[0] for part in parts), sum(part[1] for part in parts), len(found)
    skipped = tuple(name for part in parts for name in part[4])
    return Evaluation(n, 100 * top1 / n, 100 * top5 / n, seconds, found, true, skipped)


def own_part(dataset: Dataset, batch_size: int) -> Dataset | None:
    """Returns this rank's images, whole batches in a row; None where there are fewer batches than ranks."""
    world, batches = parallel.world(), -(-len(dataset) // batch_size)
    if world == 1:
        return dataset
    first, last = (batch_size * (batches * rank // world) for rank in (parallel.rank(), parallel.rank() + 1))
    return dataset.select(range(first, min(last, len(dataset)))) if last > first else None


def limited(dataset: Dataset, limit: int | None) -> Dataset:
    """Returns at most `limit` images, spread over the data set and always the same ones."""
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.subset(limit, seed=0)


def check_labels(model: Any, dataset: Dataset) -> None:
    """Raises VisqError unless the data set's labels can be compared with the model's outputs."""
    if not dataset.labelled:
        raise VisqError(f"{dataset.name} has no labels; evaluation needs a folder (or tar) of class folders")
    outputs, names = image_classes(model.config), model.card.classes
    if outputs is None and num_classes(model.config) is not None:
        raise VisqError(f"{model.card.name} gives each pixel a class, so it has no top-1; give `visq eval` --masks")
    if outputs is None:
        raise VisqError(
            f"{model.card.name} has no classes, so it has no top-1; for PSNR give `visq eval` pairs of images, --hr "
            "and --lr (visq.analysis.super_resolution)"
        )
    if names is None and len(dataset.classes) != outputs:
        raise VisqError(
            f"{dataset.name} has {len(dataset.classes)} classes, the model {outputs} outputs whose names are unknown; "
            "pass --classes with a file of the model's class names"
        )
