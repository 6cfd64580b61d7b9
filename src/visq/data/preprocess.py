"""From decoded pixels to what a model wants: resize, centre crop, normalize."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from visq.data.decode import UnreadableImage, convert, loaded, opened
from visq.errors import VisqError

if TYPE_CHECKING:
    import torch

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
#: Largest `resize` [pixels].
LARGEST = 8192
#: The ends of an image are cut off before it is resized to more pixels than this (Pillow takes 4 bytes for each) ...
MOST_RESIZED = 1 << 26
#: ... or where it is more than this many times as long as wide.
LONGEST = 64


@dataclass(frozen=True)
class Prepared:
    """An image as a model takes it, before normalization.

    Attributes:
        pixels: [channels, image_size, image_size] uint8.
        turned: the file has an EXIF orientation other than upright.
        transparent: the file has transparent pixels, which now show white.
    """

    pixels: np.ndarray
    turned: bool = False
    transparent: bool = False


@dataclass(frozen=True)
class Preprocess:
    """The evaluation transform that belongs to a checkpoint.

    The shorter side is resized to `resize` pixels (an image that has it already is not resampled), the centre
    `image_size` x `image_size` pixels are cut out, and x/255 is normalized with `mean` and `std`, one value a channel.

    Raises:
        VisqError: a value that no image can be prepared with, named.
    """

    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    channels: Literal[1, 3] = 3
    crop: Literal["center"] = "center"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise VisqError(f"preprocess.channels must be 1 or 3, not {self.channels}")
        if not isinstance(self.interpolation, str) or self.interpolation not in _RESAMPLING:
            raise VisqError(f"preprocess.interpolation must be bicubic or bilinear, not {self.interpolation!r}")
        if self.crop != "center":
            raise VisqError(f"preprocess.crop must be center, not {self.crop!r}")
        if not 0 < self.image_size <= self.resize <= LARGEST:
            raise VisqError(
                f"preprocess needs 0 < image_size <= resize <= {LARGEST}, not {self.image_size} and {self.resize}"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise VisqError(f"preprocess.{name} has {len(values)} values for {self.channels} channels")
            if not all(math.isfinite(value) for value in values):
                raise VisqError(f"preprocess.{name} must be finite, not {values}")
        if min(self.std) <= 0:
            raise VisqError(f"preprocess.std must be positive, not {self.std}")

    @classmethod
    def imagenet(cls, image_size: int = 224, resize: int = 256) -> Preprocess:
        """Returns the official evaluation transform of Vim: resize 256 bicubic, crop 224, ImageNet statistics."""
        return cls(image_size, resize, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    @classmethod
    def fashion_mnist(cls) -> Preprocess:
        """Returns the transform of the embedded set: 28 x 28 grey pixels as they are, its own mean and deviation."""
        return cls(28, 28, mean=(0.2860,), std=(0.3530,), channels=1)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_dict` gives the same object back."""
        values = asdict(self)
        return {**values, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Builds the transform from `to_dict`'s values.

        Raises:
            VisqError: an unknown or missing key, or a value of the wrong type, named.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise VisqError(f"preprocess: unknown key {', '.join(sorted(unknown))}")
        try:
            numbers = {name: tuple(float(value) for value in values[name]) for name in ("mean", "std")}
            sizes = {name: _whole(values[name]) for name in ("image_size", "resize")}
        except KeyError as error:
            raise VisqError(f"preprocess: key {error} is missing") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise VisqError(f"preprocess: {error}") from error
        return cls(**{**values, **numbers, **sizes})

    def pixels(self, encoded: bytes | np.ndarray) -> np.ndarray:
        """Returns the pixels of `prepare`, of an image as it is stored: [channels, image_size, image_size] uint8."""
        return self.prepare(encoded).pixels

    def prepare(self, encoded: bytes | np.ndarray | Image.Image, *, upright: bool = False) -> Prepared:
        """Decodes, resizes and crops one image.

        Arguments:
            encoded: a file's bytes, a PIL image, or pixels [H, W] (grey) or [H, W, 3] (RGB) uint8.
            upright: applies the EXIF orientation; evaluation leaves it off, as the field does.
        Raises:
            UnreadableImage: the bytes are no image, or the array is none of these.
        """
        if isinstance(encoded, np.ndarray):
            return Prepared(self._array_pixels(encoded))
        with loaded(encoded) if isinstance(encoded, Image.Image) else opened(encoded) as image:
            decoded = convert(image, self.channels, upright=upright)
            return Prepared(self.fit(decoded.image), decoded.turned, decoded.transparent)

    def _array_pixels(self, array: np.ndarray) -> np.ndarray:
        grey = array.ndim == 2
        if array.dtype != np.uint8 or array.size == 0 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
            raise UnreadableImage(f"pixels must be uint8 [H, W] or [H, W, 3], not {array.dtype} {list(array.shape)}")
        if grey and array.shape == (self.image_size, self.image_size) and self.resize == self.image_size:
            return np.broadcast_to(array, (self.channels, *array.shape))
        return self.fit(Image.fromarray(array).convert("L" if self.channels == 1 else "RGB"))

    def fit(self, image: Image.Image) -> np.ndarray:
        """Resizes and crops an image of mode L or RGB; returns uint8 [channels, image_size, image_size]."""
        image = resize_shorter(trim_ends(image, self.resize), self.resize, self.interpolation)
        pixels = np.asarray(center_crop(image, self.image_size))
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns (x/255 - mean) / std of pixels [B, channels, H, W] uint8 as float32, on the same device."""
        import torch

        mean = torch.tensor(self.mean).to(pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std).to(pixels.device).view(1, -1, 1, 1)
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def normalize_array(self, pixels: np.ndarray) -> np.ndarray:
        """Does what `normalize` does, without torch and bit for bit."""
        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        result: np.ndarray = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return result


def _whole(value: Any) -> int:
    """Returns a whole number as int; ValueError for 224.5 and the like, which int() would round silently."""
    if int(value) != float(value):
        raise ValueError(f"{value} is not a whole number of pixels")
    return int(value)


def resize_shorter(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    """Resizes so that the shorter side has `size` pixels and the longer one int(size * long / short)."""
    width, height = image.size
    short, long = sorted((width, height))
    if short == size:
        return image
    other = int(size * long / short)
    return image.resize((size, other) if width <= height else (other, size), _RESAMPLING[interpolation])


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cuts out the centre size x size pixels, with offsets round((side - size) / 2)."""
    width, height = image.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def trim_ends(image: Image.Image, resize: int) -> Image.Image:
    """Cuts the ends off a very long image: the centre crop after `resize` does not show them.

    Without this, an image of 65500 x 1 pixels would become one of 16 million x 256 before the crop.
    """
    width, height = image.size
    keep = max(2, min(LONGEST, MOST_RESIZED // resize**2)) * min(width, height)
    left, top = max(0, (width - keep) // 2), max(0, (height - keep) // 2)
    if left == top == 0:
        return image
    return image.crop((left, top, width - left, height - top))
