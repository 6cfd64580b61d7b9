"""What a training run starts from: images in memory, and a network that fits them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visq.data import Dataset, open_dataset
from visq.errors import VisqError
from visq.models import create_model, list_models, load_model
from visq.models.family import family_of, image_size, num_classes
from visq.models.positions import load_other_resolution
from visq.train.config import TrainConfig


@dataclass(frozen=True)
class Images:
    """A whole set in memory.

    Attributes:
        pixels: [N, channels, H, W] uint8.
        labels: [N] int64, on the CPU.
    """

    pixels: Tensor
    labels: Tensor

    def on(self, device: torch.device) -> Images:
        """Returns the set on a GPU where it takes no more than a third of the free memory; on the CPU elsewhere."""
        if device.type != "cuda" or 3 * self.pixels.nbytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return Images(self.pixels.to(device), self.labels)


def open_data(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Returns the training and the evaluation set, labelled in the same order of classes.

    Raises:
        VisqError: a set has no labels, or `data.holdout` leaves nothing to train on.
    """
    data = config.data
    train_set = open_dataset(data.train, config.train_preprocess, split="train", classes=data.classes)
    if not train_set.labelled:
        raise VisqError(f"data.train {data.train!r} has no labels to learn")
    if data.holdout:
        if data.holdout >= len(train_set):
            raise VisqError(f"data.holdout {data.holdout} leaves nothing of {len(train_set)} training images")
        order = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(0)).tolist()
        kept_out = open_dataset(data.train, config.preprocess, split="train", classes=data.classes)
        return train_set.select(sorted(order[data.holdout :])), kept_out.select(sorted(order[: data.holdout]))
    eval_set = open_dataset(data.eval, config.preprocess, split="test", classes=train_set.classes)
    if not eval_set.labelled:
        raise VisqError(f"data.eval {data.eval!r} has no labels to compare with")
    return train_set, eval_set


def load_images(dataset: Dataset) -> Images:
    """Decodes a whole set into memory.

    Raises:
        VisqError: it would take more than half of the machine's memory.
    """
    transform = dataset.preprocess
    size = len(dataset) * transform.channels * transform.image_size**2
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2:
        raise VisqError(
            f"{dataset.name}: {len(dataset)} images take {size / 1e9:.1f} GB, too much to train from memory"
        )
    batches = list(dataset.pixel_batches(1024))
    return Images(torch.cat([pixels for pixels, _ in batches]), torch.cat([labels for _, labels in batches]))


def build_model(config: TrainConfig, classes: tuple[str, ...]) -> Any:
    """Returns the configured network, with the checkpoint's weights or random ones from `config.seed`.

    Arguments:
        classes: the class names of the data.
    Raises:
        VisqError: the network does not fit the data or the checkpoint.
    """
    geometry = {**config.model.geometry, "drop_path": config.drop_path}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = create_model(config.model.name, **geometry)
    if config.model.interpolate_positions:
        assert config.model.checkpoint is not None  # the configuration's rule
        load_other_resolution(model, config.model.checkpoint)
    elif config.model.checkpoint is not None:
        checkpoint = config.model.checkpoint
        model = load_model(config.model.name, checkpoint, geometry=geometry, resample=False, fold=False).train()
    if config.model.backbone is not None:
        _start_from(model, config.model.backbone)
    got, transform = model.config, config.preprocess
    if num_classes(got) is None:
        raise VisqError(f"visq trains classifiers only, and {config.model.name} has no classes")
    if family_of(got).per_pixel != (config.masks is not None):
        kind = "gives each pixel a class and needs masks" if config.masks is None else "gives an image one class"
        raise VisqError(f"{config.model.name} {kind}; see `masks` of the configuration")
    pairs = (
        ("image_size", image_size(got) or transform.image_size, transform.image_size),
        ("channels", got.channels, transform.channels),
        ("num_classes", got.num_classes, len(classes)),
    )
    for name, has, needs in pairs:
        if has != needs:
            raise VisqError(f"model.geometry.{name} is {has} but the data has {needs}")
    return model


def _start_from(model: Any, backbone: str) -> None:
    """Gives a network the backbone of a classifier, a packaged name or a file."""
    if not hasattr(model, "take_backbone"):
        raise VisqError(f"model.backbone: {model.card.name} has no backbone; give model.checkpoint")
    named = backbone in {card.name for card in list_models()}
    classifier = load_model(backbone) if named else load_model(None, backbone, fold=False)
    try:
        model.take_backbone(classifier)
    except VisqError as error:
        raise VisqError(f"model.backbone {backbone}: {error}") from error
