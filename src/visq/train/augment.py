"""Random changes of training images, a whole batch at a time; every image of a batch draws its own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from visq.data import Preprocess
from visq.train.config import AugmentConfig


class Augment:
    """Turns a batch of pixels and labels into what the loss takes.

    Images larger than the model's come down to its size when crops are cut out of them.
    """

    def __init__(self, config: AugmentConfig, preprocess: Preprocess, num_classes: int, label_smoothing: float) -> None:
        self.config = config
        self.preprocess = preprocess
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

    def __call__(self, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Changes one batch at random.

        Arguments:
            pixels: [B, channels, H, W] uint8.
            labels: [B] int64.
            generator: on the CPU, so that a seed means the same on every device.
        Returns:
            Images [B, channels, size, size] float32, normalized, and targets [B, classes] float32 that sum to 1.
        """
        config = self.config
        if config.crop_padding:
            pixels = random_crop(pixels, config.crop_padding, generator)
        if config.resized_crop or config.rotate or config.shear or config.zoom:
            pixels = random_affine(pixels, config, generator, self.preprocess.image_size)
        elif config.flip:
            flipped = torch.rand(len(pixels), generator=generator) < config.flip
            pixels = torch.where(_each(flipped, pixels), pixels.flip(3), pixels)
        if config.brightness or config.contrast or config.saturation:
            pixels = random_colour(pixels, config, generator)
        images = self.preprocess.normalize(pixels)
        if config.erase:
            images = random_erase(images, config.erase, config.erase_area, generator)
        targets = smooth_targets(labels, self.num_classes, self.label_smoothing)
        return random_mix(images, targets, config, generator)


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Returns one-hot targets [B, num_classes] float32 with a share `smoothing` spread over all classes."""
    return F.one_hot(labels, num_classes).float().mul_(1 - smoothing).add_(smoothing / num_classes)


def random_crop(pixels: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shifts each image [B, C, H, W] by -padding..padding pixels in both directions and fills in zeros."""
    batch, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding,) * 4)
    offsets = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator).to(pixels.device)
    rows = offsets[0] + torch.arange(height, device=pixels.device)
    columns = offsets[1] + torch.arange(width, device=pixels.device)
    images = torch.arange(batch, device=pixels.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_affine(pixels: Tensor, config: AugmentConfig, generator: torch.Generator, size: int) -> Tensor:
    """Crops, flips, rotates, shears and zooms each image in one bilinear resampling.

    Arguments:
        pixels: [B, C, H, W] uint8.
        size: side of the result [pixels].
    Returns:
        [B, C, size, size] uint8; zeros where the image does not reach.
    """
    batch, channels = pixels.shape[:2]

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch).uniform_(low, high, generator=generator)

    angle = torch.deg2rad(uniform(-config.rotate, config.rotate))
    shear = torch.tan(torch.deg2rad(uniform(-config.shear, config.shear)))
    zoom = torch.exp(uniform(-1, 1) * math.log1p(config.zoom))
    size_x, size_y = zoom.clone(), zoom
    shift_x, shift_y = torch.zeros(batch), torch.zeros(batch)
    if config.resized_crop:
        area = uniform(*config.resized_crop)
        ratio = torch.exp(uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_x, crop_y = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
        shift_x, shift_y = uniform(-1, 1) * (1 - crop_x), uniform(-1, 1) * (1 - crop_y)
        size_x, size_y = size_x * crop_x, size_y * crop_y
    size_x = size_x * torch.where(torch.rand(batch, generator=generator) < config.flip, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    top = torch.stack([cos * size_x, (shear * cos - sin) * size_y, shift_x], dim=1)
    bottom = torch.stack([sin * size_x, (shear * sin + cos) * size_y, shift_y], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), [batch, channels, size, size], align_corners=False)
    moved = F.grid_sample(pixels.float(), grid.to(pixels.device), align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8)


def random_colour(pixels: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Changes brightness, contrast (about the image's mean) and saturation (about its grey) of [B, C, H, W] uint8."""

    def factor(strength: float) -> Tensor:
        draw = 1 + strength * (2 * torch.rand(len(pixels), generator=generator) - 1)
        return _each(draw.clamp_min(0), pixels)

    images = pixels.float() * factor(config.brightness)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * factor(config.contrast)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * factor(config.saturation)
    return images.round_().clamp_(0, 255).to(torch.uint8)


def random_erase(images: Tensor, probability: float, largest: float, generator: torch.Generator) -> Tensor:
    """Fills a rectangle with normal noise in a share `probability` of the images [B, C, H, W] float32.

    The rectangle takes 2 % of the area to `largest`, a fraction.
    """
    batch, _, height, width = images.shape
    area = torch.empty(batch).uniform_(0.02, largest, generator=generator)
    ratio = torch.exp(torch.empty(batch).uniform_(math.log(0.3), math.log(1 / 0.3), generator=generator))
    half_y, half_x = (area * ratio).sqrt() / 2, (area / ratio).sqrt() / 2
    centre = torch.rand(2, batch, generator=generator)
    inside = _between(centre[0], half_y, height)[:, :, None] & _between(centre[1], half_x, width)[:, None, :]
    inside &= (torch.rand(batch, generator=generator) < probability)[:, None, None]
    return torch.where(inside[:, None].to(images.device), _noise(images, generator), images)


def _noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns normal noise like the images. A GPU draws it itself, from a seed of the generator: the CPU takes longer
    for it than a whole step."""
    if not images.is_cuda:
        return torch.randn(images.shape, generator=generator).to(images.device)
    own = torch.Generator(images.device).manual_seed(int(torch.randint(2**31, (), generator=generator)))
    return torch.randn(images.shape, device=images.device, generator=own)


def random_mix(
    images: Tensor, targets: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mixes the batch with itself in another order, by mixup or CutMix (each half the time when both are on).

    Returns:
        Images and targets of the shapes of `images` [B, C, H, W] and `targets` [B, classes].
    """
    alphas = [(config.mixup, False), (config.cutmix, True)]
    choices = [(alpha, cut) for alpha, cut in alphas if alpha > 0]
    if not choices or float(torch.rand((), generator=generator)) >= config.mix_probability:
        return images, targets
    alpha, cut = choices[int(torch.randint(len(choices), (), generator=generator))]
    order = torch.randperm(len(images), generator=generator).to(images.device)
    share = _beta(alpha, generator)
    if cut:
        height, width = images.shape[2:]
        centre, half = torch.rand(2, 1, generator=generator), torch.tensor([math.sqrt(1 - share) / 2])
        inside = (_between(centre[0], half, height)[:, :, None] & _between(centre[1], half, width)[:, None, :])[:, None]
        images = torch.where(inside.to(images.device), images[order], images)
        share = 1 - float(inside.float().mean())
    else:
        images = torch.lerp(images[order], images, share)
    return images, torch.lerp(targets[order], targets, share)


def _between(centre: Tensor, half: Tensor, size: int) -> Tensor:
    """Returns which of `size` pixels have their middle within centre +- half, fractions of the side: [B, size] bool."""
    middle = (torch.arange(size) + 0.5) / size
    return (middle - centre[:, None]).abs() <= half[:, None]


def _each(values: Tensor, images: Tensor) -> Tensor:
    """Returns one value an image, [B], in a shape that multiplies [B, channels, H, W]."""
    return values.to(images.device)[:, None, None, None]


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Draws from Beta(alpha, alpha); torch.distributions takes no generator."""
    gamma = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator)
    return float(gamma[0] / gamma.sum().clamp_min(1e-300))
