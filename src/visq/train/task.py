"""What the training loop asks of a kind of data: batches, a loss and a score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visq.train.augment import Augment
from visq.train.config import TrainConfig
from visq.train.inputs import load_images, open_data

Forward = Callable[[Tensor], Tensor]


class Task(Protocol):
    """Stands for a kind of training data.

    Attributes:
        metric: name of its score, as in the log.
        classes: names of the classes.
        data: fingerprint of the training images.
        n, eval_n: numbers of images, once they are loaded.
    """

    metric: str
    classes: tuple[str, ...]
    data: str
    n: int
    eval_n: int

    def load(self, device: torch.device) -> None:
        """Brings all images into memory."""

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns images and targets of training images [B], changed at random."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss of a batch."""

    def score(self, forward: Forward, model: nn.Module, precision: str) -> float:
        """Returns the score over the evaluation images [percent]; `forward` may be the model's compiled form."""


class Labels:
    """Images with a label each, their cross-entropy and top-1."""

    metric = "top1"

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.train_set, self.eval_set = open_data(config)
        self.classes, self.data = self.train_set.classes, self.train_set.fingerprint()
        self.augment = Augment(config.augment, config.preprocess, len(self.classes), config.label_smoothing)

    def load(self, device: torch.device) -> None:
        """Decodes all images, and moves them to a GPU that has the room."""
        self.device = device
        self.images, self.eval_images = (load_images(found).on(device) for found in (self.train_set, self.eval_set))
        self.n, self.eval_n = len(self.images.labels), len(self.eval_images.labels)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns images [B, channels, size, size] and targets [B, classes] float32."""
        pixels, labels = self.images.pixels[indices], self.images.labels[indices]
        return self.augment(pixels.to(self.device), labels.to(self.device), generator)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross-entropy of logits [B, classes]."""
        return F.cross_entropy(logits, targets)

    @torch.no_grad()
    def score(self, forward: Forward, model: nn.Module, precision: str) -> float:
        """Returns top-1 over the evaluation images [percent]."""
        model.eval()
        images, size, correct = self.eval_images, 2 * self.config.batch_size, 0
        for start in range(0, len(images.labels), size):
            pixels, labels = images.pixels[start : start + size], images.labels[start : start + size]
            missing = size - len(labels)
            if missing:  # a compiled model would be compiled again for the smaller last batch
                pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = forward(self.config.preprocess.normalize(pixels.to(self.device)))
            correct += int((logits[: len(labels)].argmax(1).cpu() == labels).sum())
        return 100 * correct / len(images.labels)
