"""Data sets from what a Python program has in its hands: names, arrays, tensors, images, loaders."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from visq.data.dataset import Dataset
from visq.data.decode import UnreadableImage, convert, loaded
from visq.data.labels import UNLABELLED
from visq.data.opening import Split, open_dataset
from visq.data.preprocess import Preprocess
from visq.data.records import Record, Source
from visq.data.sources import ArraySource, FileSource
from visq.errors import VisqError

#: What is kept of an image: uint8 pixels, a normalized float32 tensor, or a path.
Kept = np.ndarray | str
#: No normalization in use makes values as large as this.
_NORMAL = 20.0
_PATHS, _KINDS = "paths", {"uint8": "uint8 pixels", "float32": "normalized tensors"}


class NormalizedDataset(Dataset):
    """A data set of tensors [channels, size, size] float32 that are normalized already."""

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images [B, channels, size, size] float32 and labels [B] int64, in order."""
        if batch_size < 1:
            raise VisqError(f"batch size must be at least 1, not {batch_size}")
        for first in range(0, len(self), batch_size):
            records = self._records[first : first + batch_size]
            images = np.stack([np.asarray(record.source.read(record.key)) for record in records])
            yield torch.from_numpy(images), torch.tensor(self.labels[first : first + batch_size])

    def pixel_batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Raises VisqError: normalized tensors have no pixels."""
        raise VisqError(f"{self.name}: pixels are needed, and these tensors are normalized already; give image files")


def as_dataset(
    given: Any,
    preprocess: Preprocess,
    *,
    split: Split,
    classes: Sequence[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Returns a data set of whatever images are given.

    Arguments:
        given: a Dataset, taken whole; a name or path as `open_dataset` takes it, of which `samples` images are drawn by
            `seed`; or images, of which the first `samples` are taken. Images are a path, a PIL image, uint8 pixels
            [H, W] or [H, W, 3], or a normalized float tensor [channels, size, size], arrays or tensors or loaders of
            batches of these, and pairs of images and labels.
        preprocess: makes pixels the model's input; float tensors must have been through the like.
        classes: the model's class names, which integer labels index.
    Raises:
        VisqError: images of different kinds, of another shape or dtype, or with NaN or Inf, named by their index.
    """
    if isinstance(given, Dataset):
        return given
    if isinstance(given, str | Path):
        dataset = open_dataset(given, preprocess, split=split, classes=classes)
        return dataset if samples is None else dataset.subset(samples, seed)
    pair = isinstance(given, tuple) and len(given) == 2 and _is_label(given[1])
    if pair or isinstance(given, np.ndarray | torch.Tensor | Image.Image):
        given = [given]
    if not isinstance(given, Iterable):
        raise VisqError(f"images cannot be taken from {_kind(given)}; give a folder, arrays, tensors or a loader")
    images: list[Kept] = []
    labels: list[int] = []
    for image, label in itertools.islice((found for item in given for found in _items(item)), samples):
        images.append(_checked(image, len(images), preprocess))
        labels.append(label)
    return _dataset(images, labels, preprocess, classes)


def _dataset(images: list[Kept], labels: list[int], preprocess: Preprocess, classes: Sequence[str] | None) -> Dataset:
    if not images:
        raise VisqError("no images are given")
    kinds = {_KINDS.get(image.dtype.name, "") if isinstance(image, np.ndarray) else _PATHS for image in images}
    if len(kinds) > 1:
        raise VisqError(f"images of different kinds are given together ({', '.join(sorted(kinds))}); give one kind")
    if len(set(labels)) > 1 and UNLABELLED in labels:
        raise VisqError("some images have labels and some have none")
    name = f"{len(images)} images in memory"
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    paths = [image for image in images if isinstance(image, str)]
    source: Source = ArraySource(arrays) if arrays else FileSource([Path(path).expanduser() for path in paths])
    records = [Record(paths[i] if paths else f"{i:05d}", None, source, i) for i in range(len(images))]
    if labels and UNLABELLED not in labels:
        names = list(classes) if classes is not None else [str(i) for i in range(max(labels) + 1)]
        if not 0 <= min(labels) <= max(labels) < len(names):
            raise VisqError(f"{name}: labels of {min(labels)}..{max(labels)} but {len(names)} classes")
    else:
        names = []
    kind = NormalizedDataset if kinds == {_KINDS["float32"]} else Dataset
    if kind is NormalizedDataset and (most := max(float(np.abs(image).max()) for image in arrays)) > _NORMAL:
        warnings.warn(
            f"{name} have values up to {most:.0f}, so they do not look normalized; "
            "the model takes (x/255 - mean) / std",
            stacklevel=3,
        )
    return kind(name, records, labels, names, preprocess)


def _items(item: Any) -> Iterator[tuple[Any, int]]:
    """Yields image and label of every image in what an iterable gives: an image, a batch, or a pair with labels."""
    if isinstance(item, tuple | list) and len(item) == 2 and _is_label(item[1]):
        images, labels = list(_images(item[0])), np.atleast_1d(np.asarray(item[1])).astype(np.int64).tolist()
        if len(images) != len(labels):
            raise VisqError(f"a batch has {len(images)} images but {len(labels)} labels")
        yield from zip(images, labels, strict=True)
    elif isinstance(item, tuple | list):
        for image in item:
            yield from ((found, UNLABELLED) for found in _images(image))
    else:
        yield from ((image, UNLABELLED) for image in _images(item))


def _is_label(value: Any) -> bool:
    """Returns whether a value is whole numbers, one or one for each image."""
    if isinstance(value, torch.Tensor):
        return value.ndim <= 1 and not value.is_floating_point() and not value.is_complex()
    try:
        array = np.asarray(value)
    except ValueError:
        return False
    return array.ndim <= 1 and array.dtype.kind in "iu"


def _images(value: Any) -> Iterator[Any]:
    """Yields the images of one image or of an array of them."""
    if isinstance(value, str | Path | Image.Image):
        yield value
        return
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value if value.dtype == torch.uint8 else value.float()).numpy()
    if not isinstance(value, np.ndarray):
        raise VisqError(f"an image cannot be {_kind(value)}; give paths, PIL images, arrays or tensors")
    grey_or_colour = value.dtype == np.uint8 and (value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3))
    normalized = value.dtype != np.uint8 and value.ndim == 3
    yield from [value] if grey_or_colour or normalized else value if value.ndim > 2 else [value]


def _checked(image: Any, index: int, preprocess: Preprocess) -> Kept:
    """Returns an image as it is kept; VisqError for one that the model cannot take."""
    if isinstance(image, str | Path):
        return str(image)
    if isinstance(image, Image.Image):
        try:
            with loaded(image):
                return np.asarray(convert(image, preprocess.channels).image)
        except UnreadableImage as error:
            raise VisqError(f"image {index} cannot be read: {error}") from error
    if image.dtype == np.uint8:
        if image.size and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            return image
        raise VisqError(f"image {index}: uint8 pixels must be [H, W] or [H, W, 3], not {list(image.shape)}")
    size, channels = preprocess.image_size, preprocess.channels
    if image.dtype.kind != "f" or image.shape != (channels, size, size):
        raise VisqError(
            f"image {index}: the model takes [{channels}, {size}, {size}] float32, normalized, not "
            f"{list(image.shape)} {image.dtype}"
        )
    image = np.ascontiguousarray(image, np.float32)
    if not np.isfinite(image).all():
        raise VisqError(f"image {index} holds NaN or Inf")
    return image


def _kind(value: Any) -> str:
    return f"an object of type {type(value).__qualname__}"
