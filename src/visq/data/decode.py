"""From a file's bytes to 8-bit pixels, in bounded memory whatever the file says."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

#: Pillow's names of the formats that are decoded; no other decoder ever sees a user's file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: Images with more pixels than this are refused [pixels]; the largest phone cameras have 108 million.
MOST_PIXELS = 178_956_970
#: Images with more pixels than this are decoded one at a time, so that threads do not multiply their memory [pixels].
LARGE_PIXELS = 1 << 24

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_large_image = threading.Lock()


class UnreadableImage(Exception):
    """The bytes are not an image that can be decoded; the message says why."""


@dataclass(frozen=True)
class Decoded:
    """A decoded image and what its file says beyond the pixels.

    Attributes:
        image: mode L or RGB.
        turned: the file has an EXIF orientation other than upright.
        transparent: the file has transparent pixels, which now show white.
    """

    image: Image.Image
    turned: bool = False
    transparent: bool = False


def decode_image(encoded: bytes, channels: int, *, upright: bool = False) -> Decoded:
    """Decodes a file into 8 bits a channel; arguments and errors are those of `opened` and `convert`."""
    with opened(encoded) as image:
        return convert(image, channels, upright=upright)


@contextlib.contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """Opens and loads an image file for the time of a `with` block; of several frames the first.

    Arguments:
        encoded: a file's bytes, in one of `FORMATS`.
    Raises:
        UnreadableImage: as `loaded`, or a format that is not read.
    """
    with _as_unreadable(), Image.open(io.BytesIO(encoded), formats=FORMATS) as image, loaded(image):
        yield image


@contextlib.contextmanager
def loaded(image: Image.Image) -> Iterator[Image.Image]:
    """Loads the pixels of an open image for the time of a `with` block; one thread at a time if they are many.

    Raises:
        UnreadableImage: whatever the decoder or the block raised, or too many pixels.
    """
    pixels = image.width * image.height
    with _as_unreadable(), _one_large_image if pixels > LARGE_PIXELS else contextlib.nullcontext():
        if pixels > MOST_PIXELS:
            raise UnreadableImage(f"it has {image.width}x{image.height} pixels, at most {MOST_PIXELS:,} are read")
        image.load()
        yield image


@contextlib.contextmanager
def _as_unreadable() -> Iterator[None]:
    """Turns whatever a block raises into an UnreadableImage that says why."""
    try:
        yield
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(f"its content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"it has more than {MOST_PIXELS:,} pixels") from error
    except MemoryError as error:
        raise UnreadableImage("decoding it takes more memory than there is") from error
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def convert(image: Image.Image, channels: int, *, upright: bool = False) -> Decoded:
    """Converts a loaded image to 8 bits a channel, with transparent pixels over white.

    Sixteen-bit grey is divided by 257, so that 65535 becomes 255, where Pillow's own conversion would clip.

    Arguments:
        channels: 1 for mode L, 3 for RGB.
        upright: turns the pixels as the EXIF orientation asks for. Published numbers come from pixels as they are
            stored, so evaluation leaves this off.
    Raises:
        UnreadableImage: pixels in floating point, or integers beyond 16 bits.
    """
    orientation = _orientation(image)
    if image.mode.startswith("I"):
        image = _sixteen_to_eight(image)
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no known range")
    transparent = False
    if "transparency" in image.info or image.getbands()[-1] in ("A", "a"):
        image = image.convert("RGBA")
        transparent = image.getchannel("A").getextrema() != (255, 255)
        if transparent:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if upright and orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return Decoded(image, orientation in _UPRIGHT, transparent)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) where there is none or the EXIF block is damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF must not cost the image, and makes Pillow raise almost anything
        return 1


def _sixteen_to_eight(image: Image.Image) -> Image.Image:
    """Scales grey pixels of 0..65535 (modes I and I;16*) to mode L."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise UnreadableImage(f"integer pixels of {low}..{high}, expected 0..65535")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
