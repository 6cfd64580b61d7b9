"""Turns images in any form into named classes, batch by batch, so that memory does not grow with their number."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from visq.data.decode import UnreadableImage
from visq.data.imagenet import imagenet_names
from visq.data.preprocess import Prepared, Preprocess
from visq.data.sources import read_file
from visq.errors import VisqError
from visq.integer.arithmetic import Floats

#: A path, a file's bytes, a PIL image, or pixels [H, W] or [H, W, 3] uint8.
ImageLike: TypeAlias = "Path | str | bytes | Image.Image | np.ndarray"
_FORMS = (str, Path, bytes, Image.Image)


@dataclass(frozen=True)
class Prediction:
    """A predicted class: its number, its name (the number where classes have no names) and its probability."""

    index: int
    name: str
    probability: float


class Predictor:
    """A predictor of classes; it turns images into predictions by a function from normalized images to logits.

    Arguments:
        run: images [B, channels, size, size] float32 -> logits [B, classes] float32.
        names: the class names. Without them, a network with 1,000 classes gets ImageNet's names.
    """

    def __init__(self, run: Callable[[Floats], Floats], preprocess: Preprocess, names: Sequence[str] | None) -> None:
        self._run, self._preprocess, self._names = run, preprocess, names
        self._said_transparent = False

    def each(
        self, images: ImageLike | Iterable[ImageLike], *, top: int, batch: int, upright: bool
    ) -> Iterator[list[Prediction] | VisqError]:
        """Yields, for every image in order, its `top` classes, likeliest first, or why it cannot be read.

        Raises:
            VisqError: `images` have none of the forms of `ImageLike`, or `top` or `batch` is below 1.
        """
        if top < 1 or batch < 1:
            raise VisqError(f"top and batch must be at least 1, not {top} and {batch}")
        remaining = iter(as_images(images))
        index = 0
        while block := list(itertools.islice(remaining, batch)):
            read = [self._pixels(image, index + i, upright) for i, image in enumerate(block)]
            index += len(block)
            good = [pixels for pixels in read if not isinstance(pixels, VisqError)]
            found = iter(self._classify(np.stack(good), top) if good else ())
            for pixels in read:
                yield pixels if isinstance(pixels, VisqError) else next(found)

    def normalized(self, image: ImageLike, upright: bool) -> Floats:
        """Returns an image as the network takes it, [channels, size, size] float32.

        Raises:
            VisqError: it cannot be read.
        """
        pixels = self._pixels(image, 0, upright)
        if isinstance(pixels, VisqError):
            raise pixels
        found: Floats = self._preprocess.normalize_array(pixels[None])[0]
        return found

    def _classify(self, pixels: np.ndarray, top: int) -> list[list[Prediction]]:
        return self.named(self._run(self._preprocess.normalize_array(pixels)), top)

    def named(self, logits: Floats, top: int) -> list[list[Prediction]]:
        """Returns the `top` classes of logits [B, classes], likeliest first.

        Raises:
            VisqError: the network returns images.
        """
        if logits.ndim != 2:
            raise VisqError("this network returns images, not classes; `visq upscale` is for it, or the engine itself")
        shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
        probabilities = shifted / shifted.sum(1, keepdims=True)
        if self._names is None and logits.shape[1] == len(imagenet_names()):
            self._names = imagenet_names()
            warnings.warn("the network has 1,000 classes without names; ImageNet's names are shown", stacklevel=4)
        names = self._names
        return [
            [Prediction(int(i), str(i) if names is None else names[i], float(row[i])) for i in np.argsort(-row)[:top]]
            for row in probabilities
        ]

    def _pixels(self, image: ImageLike, index: int, upright: bool) -> np.ndarray | VisqError:
        """Returns an image's pixels, or the error that names it."""
        what = str(image) if isinstance(image, str | Path) else f"image {index}"
        try:
            found = self._prepared(image, upright)
        except OSError as error:
            return VisqError(f"{what} cannot be read: {error.strerror or error}")
        except (UnreadableImage, MemoryError) as error:
            return VisqError(f"{what} cannot be read as an image: {error}")
        if found.transparent and not self._said_transparent:
            self._said_transparent = True
            warnings.warn(f"{what} has transparent pixels, which are shown over white (said once)", stacklevel=4)
        return found.pixels

    def _prepared(self, image: ImageLike, upright: bool) -> Prepared:
        if isinstance(image, str | Path):
            image = read_file(Path(image).expanduser())
        elif not isinstance(image, bytes | np.ndarray | Image.Image):
            raise VisqError(
                f"an image cannot be an object of type {type(image).__qualname__}; "
                "give a path, a file's bytes, a PIL image or a uint8 array"
            )
        return self._preprocess.prepare(image, upright=upright)


def as_images(given: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Returns an iterable of single images; `given` is one image, an array of several, or any iterable.

    Raises:
        VisqError: `given` is none of these.
    """
    if isinstance(given, np.ndarray):
        one = given.ndim == 2 or (given.ndim == 3 and given.shape[2] == 3)
        return [given] if one else list(given)
    if isinstance(given, _FORMS):
        return [given]
    if not isinstance(given, Iterable):
        raise VisqError(
            f"images cannot be taken from an object of type {type(given).__qualname__}; give a path or list"
        )
    return given
