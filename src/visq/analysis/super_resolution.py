"""Measures restoration by PSNR and SSIM of the luma of pairs of images, as the field reports them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visq.data.decode import UnreadableImage, decode_image
from visq.data.sources import read_file
from visq.errors import VisqError

Pixels = NDArray[np.uint8]

#: Weights of BT.601 for R, G, B in 0..255: Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255.
LUMA = np.array([65.481, 128.553, 24.966]) / 255

_SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Restoration:
    """Holds the PSNR [dB] and the SSIM of every image by name, in order of names."""

    psnr: Mapping[str, float]
    ssim: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return sum(self.psnr.values()) / len(self.psnr)

    @property
    def mean_ssim(self) -> float:
        return sum(self.ssim.values()) / len(self.ssim)


def psnr_y(sr: Pixels, hr: Pixels, shave: int) -> float:
    """Returns the PSNR [dB] of the luma, which is not rounded; infinite for equal images.

    Arguments:
        sr, hr: [H, W, 3] uint8 RGB.
        shave: pixels left out at every border.
    Raises:
        VisqError: images of different sizes, of another type, or smaller than twice the border.
    """
    found, exact = _lumas("psnr_y", sr, hr, shave)
    error = float(np.square(found - exact).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim_y(sr: Pixels, hr: Pixels, shave: int) -> float:
    """Returns the structural similarity of the luma, which is not rounded; 1 for equal images.

    Source: Wang et al. 2004, as BasicSR computes it: a Gaussian window of 11 pixels and deviation 1.5, windows inside
    the image only, C1 = (0.01 * 255)^2 and C2 = (0.03 * 255)^2.

    Arguments and errors are those of `psnr_y`; what the border leaves must hold a window.
    """
    x, y = _lumas("ssim_y", sr, hr, shave)
    if min(x.shape) < WINDOW:
        raise VisqError(f"ssim_y: {_size(x)} pixels without the border are smaller than the window of {WINDOW}")
    mean_x, mean_y = _blurred(x), _blurred(y)
    deviation_x = _blurred(x * x) - mean_x**2
    deviation_y = _blurred(y * y) - mean_y**2
    together = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * together + c2)
    return float((similarity / ((mean_x**2 + mean_y**2 + c1) * (deviation_x + deviation_y + c2))).mean())


#: Pixels of SSIM's window, and the weights along one side.
WINDOW = 11
_GAUSSIAN = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * 1.5**2))


def _blurred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the weighted means of all windows inside x [H, W]."""
    weights = _GAUSSIAN / _GAUSSIAN.sum()
    for axis in (0, 1):
        x = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis) @ weights
    return x


def _lumas(what: str, sr: Pixels, hr: Pixels, shave: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the lumas [H, W] in 16..235 of both images without the border. Raises VisqError as `psnr_y` does."""
    for name, image in (("sr", sr), ("hr", hr)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise VisqError(f"{what}: {name} must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    if sr.shape != hr.shape:
        raise VisqError(f"{what}: an image of {_size(sr)} cannot be compared with one of {_size(hr)}")
    if shave < 0 or min(hr.shape[:2]) <= 2 * shave:
        raise VisqError(f"{what}: a border of {shave} pixels leaves nothing of an image of {_size(hr)}")
    height, width = hr.shape[:2]
    inside = slice(shave, height - shave), slice(shave, width - shave)
    return _luma(sr)[inside], _luma(hr)[inside]


def _luma(image: Pixels) -> NDArray[np.float64]:
    """Returns the luma [H, W], added up in one order whatever the layout of the image in memory is."""
    red, green, blue = (image[..., channel] * weight for channel, weight in enumerate(LUMA))
    return red + green + blue + 16


def pairs(hr: Path, lr: Path, scale: int) -> dict[str, tuple[Pixels, Pixels]]:
    """Returns (HR, LR) [H, W, 3] by name. An LR image has its HR image's name, with or without `x<scale>` behind it.

    HR images are cut to a multiple of the scale at the right and the bottom, as LR images are usually made.

    Raises:
        VisqError: a folder without images, an HR image without its LR image, sizes that are not `scale` times the
            other, a file that is no image.
    """
    large, small = _images(hr), _images(lr)
    found = {}
    for name, path in large.items():
        partner = small.get(f"{name}x{scale}", small.get(name))
        if partner is None:
            raise VisqError(f"{path} has no partner in {lr}: neither {name}x{scale} nor {name}")
        high, low = _read(path), _read(partner)
        high = high[: high.shape[0] // scale * scale, : high.shape[1] // scale * scale]
        if high.shape[:2] != (low.shape[0] * scale, low.shape[1] * scale):
            raise VisqError(f"{partner} has {_size(low)} pixels, {path} over {scale} would be {_size(high, scale)}")
        found[name] = (high, low)
    return found


@torch.no_grad()
def restore(model: Any, image: Pixels) -> Pixels:
    """Returns one image [H, W, 3] restored by the network and rounded to 8 bits, [scale H, scale W, 3].

    Arguments:
        model: [1, 3, H, W], normalized by `model.card.preprocess`, -> RGB in 0..1.
    Raises:
        VisqError: the output holds NaN or Inf.
    """
    model.eval()
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    output: Tensor = model(model.card.preprocess.normalize(pixels))[0]
    if not torch.isfinite(output).all():
        raise VisqError("the restored image holds NaN or Inf")
    result: Pixels = (output.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return result


def evaluate_restoration(model: Any, hr: Path, lr: Path, *, shave: int | None = None) -> Restoration:
    """Returns PSNR and SSIM of the luma over pairs of folders.

    Arguments:
        model: FP32 or simulated, with `config.upscale` and `card`.
        hr, lr: folders; see `pairs`.
        shave: pixels left out at every border, by default as many as the scale.
    An image that is smaller than SSIM's window has no SSIM.

    Raises:
        VisqError: the network does not enlarge images, or as `pairs`, `restore` and `psnr_y` do.
    """
    scale = getattr(model.config, "upscale", None)
    if scale is None:
        raise VisqError(f"{model.card.name} does not enlarge images, so it has no PSNR; evaluate it with --data")
    border = scale if shave is None else shave
    psnr, ssim = {}, {}
    for name, (high, low) in pairs(hr, lr, scale).items():
        found = restore(model, low)
        psnr[name] = psnr_y(found, high, border)
        if min(high.shape[:2]) - 2 * border >= WINDOW:
            ssim[name] = ssim_y(found, high, border)
    return Restoration(psnr, ssim)


def _images(folder: Path) -> dict[str, Path]:
    """Returns the image files of a folder by name, sorted."""
    if not folder.is_dir():
        raise VisqError(f"{folder} is no folder")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES}
    if not found:
        raise VisqError(f"{folder} holds no images ({', '.join(_SUFFIXES)})")
    return found


def _read(path: Path) -> Pixels:
    try:
        return np.asarray(decode_image(read_file(path), 3).image)
    except (UnreadableImage, OSError) as error:
        raise VisqError(f"{path} cannot be read: {error}") from error


def _size(image: NDArray[Any], divisor: int = 1) -> str:
    return f"{image.shape[1] // divisor}x{image.shape[0] // divisor}"
