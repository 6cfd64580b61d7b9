"""The training task of networks that give each pixel a class: images with masks, changed at random together."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visq.data.confusion import Segmentation, confusion
from visq.data.masks import MaskPair, open_masks
from visq.errors import VisqError
from visq.train.augment import random_colour
from visq.train.config import MasksConfig, TrainConfig
from visq.train.task import Forward

#: Class number of pixels that count neither in the loss nor in the score.
LEFT_OUT = 255


class Masks:
    """Pairs of images and masks in memory, the loss of their pixels, and mean IoU."""

    metric = "mean_iou"

    def __init__(self, config: TrainConfig) -> None:
        assert config.masks is not None and config.data.classes is not None  # the configuration's rules
        self.config, self.settings, self.classes = config, config.masks, config.data.classes
        if len(self.classes) > LEFT_OUT:
            raise VisqError(f"data.classes has {len(self.classes)} names; masks have at most {LEFT_OUT}")
        train = open_masks(config.data.train)
        if config.data.holdout:
            if config.data.holdout >= len(train):
                raise VisqError(f"data.holdout {config.data.holdout} leaves nothing of {len(train)} training images")
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
            evaluated = [train[i] for i in sorted(order[: config.data.holdout])]
            train = [train[i] for i in sorted(order[config.data.holdout :])]
        else:
            evaluated = open_masks(config.data.eval)
        self.pairs, self.eval_pairs = train, evaluated
        self.data = fingerprint(train)

    def load(self, device: torch.device) -> None:
        """Decodes all images and masks."""
        self.device = device
        self.images = [self._tensors(pair) for pair in self.pairs]
        self.eval_images = [self._tensors(pair) for pair in self.eval_pairs]
        self.n, self.eval_n = len(self.images), len(self.eval_images)
        self.weight = class_weights([mask for _, mask in self.images], len(self.classes), self.settings.weighting)

    def _tensors(self, pair: MaskPair) -> tuple[Tensor, Tensor]:
        """Returns an image [channels, H, W] and its mask [H, W], uint8. Raises VisqError for classes too many."""
        pixels, mask = pair.read(self.config.preprocess.channels)
        ignore, classes = self.settings.ignore, len(self.classes)
        mask = np.where(mask == ignore, LEFT_OUT, mask) if ignore is not None else mask
        wrong = (mask >= classes) & (mask != LEFT_OUT)
        if wrong.any():
            raise VisqError(f"the mask of {pair.name} has class {mask[wrong].max()}, and data.classes has {classes}")
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(mask.astype(np.uint8))

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns normalized images [B, channels, h, w] and class numbers [B, h, w] int64 of random crops."""
        chosen, flip = [self.images[i] for i in indices.tolist()], self.config.augment.flip
        pairs = [random_view(image, mask, self.settings, flip, generator) for image, mask in chosen]
        pixels, masks = torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])
        augment = self.config.augment
        if augment.brightness or augment.contrast or augment.saturation:
            pixels = random_colour(pixels, augment, generator)
        return self.config.preprocess.normalize(pixels).to(self.device), masks.long().to(self.device)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the weighted cross-entropy of all pixels that count; logits are enlarged to the masks' size."""
        logits = F.interpolate(logits, targets.shape[1:], mode="bilinear", align_corners=False)
        if bool((targets == LEFT_OUT).all()):
            return logits.sum() * 0
        weight, smoothing = self.weight.to(logits.device), self.config.label_smoothing
        return F.cross_entropy(logits, targets, weight, ignore_index=LEFT_OUT, label_smoothing=smoothing)

    @torch.no_grad()
    def score(self, forward: Forward, model: nn.Module, precision: str) -> float:
        """Returns mean IoU over the evaluation images in their own sizes [percent]."""
        model.eval()
        classes = len(self.classes)
        matrix = np.zeros((classes, classes), np.int64)
        for pixels, mask in self.eval_images:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                # Not the compiled form: it would be compiled anew for the size of whole images.
                logits = model(self.config.preprocess.normalize(pixels[None]).to(self.device))
            logits = F.interpolate(logits.float(), tuple(mask.shape), mode="bilinear", align_corners=False)
            found = logits.argmax(1)[0].cpu().numpy()
            matrix += confusion(found, mask.numpy(), classes, LEFT_OUT, "an image")
        return 100 * Segmentation(matrix, len(self.eval_images)).mean_iou


def fingerprint(pairs: list[MaskPair]) -> str:
    """Returns a sha256 over the names and the bytes of all pairs."""
    digest = hashlib.sha256()
    for pair in pairs:
        for record in (pair.image, pair.mask):
            data = record.source.read(record.key)
            assert isinstance(data, bytes)
            digest.update(f"{pair.name} {len(data)} ".encode() + data)
    return digest.hexdigest()


def class_weights(masks: list[Tensor], classes: int, power: float) -> Tensor:
    """Returns a factor of the loss for each class, share of the pixels ^ -power, 1 on the average of all pixels.

    Classes that no mask has get 0.
    """
    counts = torch.zeros(256, dtype=torch.float64)
    for mask in masks:
        counts += torch.bincount(mask.flatten().long(), minlength=256)
    shares = counts[:classes] / counts[:classes].sum()
    factors = torch.where(shares > 0, shares.clamp_min(1e-12) ** -power, 0.0)
    return (factors / (factors * shares).sum()).float()


def random_view(
    image: Tensor, mask: Tensor, settings: MasksConfig, flip: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns a random part of an image and its mask at a random scale, of the crop's size.

    Where the part reaches beyond the image, the mask has LEFT_OUT and the image is grey.

    Arguments:
        image: [channels, H, W] uint8.
        mask: [H, W] uint8.
        flip: probability of a horizontal flip.
    """
    draw = torch.rand(4, generator=generator).tolist()
    low, high = (math.log(value) for value in settings.scale)
    scale = math.exp(low + (high - low) * draw[0])
    sides = [max(1, round(crop / scale)) for crop in settings.crop]
    firsts = [
        math.floor(where * (have - want + 1)) if have >= want else -math.floor(where * (want - have + 1))
        for where, have, want in zip(draw[1:3], mask.shape, sides, strict=True)
    ]
    (top, left), (height, width) = firsts, mask.shape
    rows, columns = slice(max(top, 0), top + sides[0]), slice(max(left, 0), left + sides[1])
    image, mask = image[:, rows, columns], mask[rows, columns]
    before = (max(-left, 0), max(left + sides[1] - width, 0), max(-top, 0), max(top + sides[0] - height, 0))
    image, mask = F.pad(image, before, value=128), F.pad(mask, before, value=LEFT_OUT)
    if draw[3] < flip:
        image, mask = image.flip(2), mask.flip(1)
    size = tuple(settings.crop)
    smooth = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False, antialias=scale < 1)
    nearest = F.interpolate(mask[None, None].float(), size, mode="nearest-exact")
    return smooth[0].round().clamp(0, 255).to(torch.uint8), nearest[0, 0].to(torch.uint8)
