"""From an encoded image to the pixels a model wants: decode, resize, centre crop, normalize."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from visq.errors import VisqError

if TYPE_CHECKING:
    import torch

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class UnreadableImage(Exception):
    """The bytes are not an image that can be decoded; the message says why."""


@dataclass(frozen=True)
class Preprocess:
    """The evaluation transform that belongs to a checkpoint.

    The shorter side is resized to `resize` pixels (an image that has it already is not resampled), the centre
    `image_size` x `image_size` pixels are cut out, and x/255 is normalized with `mean` and `std`, one value a channel.
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
        if not 0 < self.image_size <= self.resize:
            raise VisqError(f"preprocess needs 0 < image_size <= resize, not {self.image_size} and {self.resize}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise VisqError(f"preprocess.{name} has {len(values)} values for {self.channels} channels")
        if min(self.std) <= 0:
            raise VisqError(f"preprocess.std must be positive, not {self.std}")

    @classmethod
    def imagenet(cls, image_size: int = 224, resize: int = 256) -> Preprocess:
        """Return the official evaluation transform of Vim: resize 256 bicubic, centre crop 224, ImageNet statistics."""
        return cls(image_size, resize, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    @classmethod
    def fashion_mnist(cls) -> Preprocess:
        """Return the transform of the embedded set: 28 x 28 grey pixels as they are, its own mean and deviation."""
        return cls(28, 28, mean=(0.2860,), std=(0.3530,), channels=1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` gives the same object back."""
        values = asdict(self)
        return {**values, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Build from `to_dict`'s values. Raises VisqError on an unknown or a missing key."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise VisqError(f"preprocess: unknown key {', '.join(sorted(unknown))}")
        try:
            numbers = {name: tuple(float(value) for value in values[name]) for name in ("mean", "std")}
            sizes = {name: int(values[name]) for name in ("image_size", "resize")}
        except KeyError as error:
            raise VisqError(f"preprocess: key {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise VisqError(f"preprocess: {error}") from error
        return cls(**{**values, **numbers, **sizes})

    def pixels(self, encoded: bytes | np.ndarray) -> np.ndarray:
        """Decode, resize and crop one image.

        `encoded` is a file's bytes, or grey pixels [H, W] uint8. Returns uint8 [channels, image_size, image_size].
        Raises UnreadableImage.
        """
        if isinstance(encoded, np.ndarray):
            if encoded.shape == (self.image_size, self.image_size) and self.resize == self.image_size:
                return np.broadcast_to(encoded, (self.channels, *encoded.shape))
            image = Image.fromarray(encoded)
            image = image if self.channels == 1 else image.convert("RGB")
        else:
            image = decode_image(encoded, self.channels)
        image = center_crop(resize_shorter(image, self.resize, self.interpolation), self.image_size)
        pixels = np.asarray(image)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn pixels [B, channels, H, W] uint8 into (x/255 - mean) / std, float32, on the same device."""
        import torch

        mean = torch.tensor(self.mean, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, -1, 1, 1)
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def normalize_array(self, pixels: np.ndarray) -> np.ndarray:
        """`normalize` without torch, bit for bit."""
        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        result: np.ndarray = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return result


def decode_image(encoded: bytes, channels: int) -> Image.Image:
    """Decode a file into mode L (1 channel) or RGB (3 channels).

    Sixteen-bit grey is divided by 257, so that 65535 becomes 255, where Pillow's own conversion would clip.
    Transparency is dropped and the EXIF orientation is left alone, as in the evaluation published numbers come from.
    Raises UnreadableImage, whatever the decoder raised.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            if image.mode.startswith("I"):
                image = _sixteen_to_eight(image)
            if image.mode == "F":
                raise UnreadableImage("floating-point pixels have no known range")
            if image.mode == "P":
                # Palette entries may carry transparency, which only RGBA takes along without a warning.
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            return image.convert("L" if channels == 1 else "RGB")
    except (MemoryError, UnreadableImage):
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _sixteen_to_eight(image: Image.Image) -> Image.Image:
    """Scale grey pixels of 0..65535 (modes I and I;16*) to mode L."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(f"integer pixels of {values.min()}..{values.max()}, expected 0..65535")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def resize_shorter(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    """Resize so that the shorter side has `size` pixels and the longer one int(size * long / short)."""
    width, height = image.size
    short, long = sorted((width, height))
    if short == size:
        return image
    other = int(size * long / short)
    return image.resize((size, other) if width <= height else (other, size), _RESAMPLING[interpolation])


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut out the centre size x size pixels, with offsets round((side - size) / 2)."""
    width, height = image.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
