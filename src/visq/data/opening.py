"""What the word DATA on a command line can name, and how it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from visq.data.dataset import UNLABELLED, Dataset
from visq.data.idx import has_idx, read_idx_pair
from visq.data.preprocess import Preprocess
from visq.data.sources import ArraySource, FolderSource, Record, TarSource
from visq.errors import VisqError

Split = Literal["calib", "test", "train"]

FASHION_MNIST = "fashion-mnist"
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def open_dataset(
    data: str,
    preprocess: Preprocess,
    *,
    split: Split,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> Dataset:
    """Open the images that `data` names.

    `data` is `fashion-mnist` (embedded: `test` has 10,000 images, `calib` and `train` the same 2,048 training images);
    a folder of class folders, of split folders of those (train, val), or of images without labels; an uncompressed
    tar of one; a folder of idx files in MNIST's naming (`idx:FOLDER` says so outright); or several of these joined
    with commas. With `classes`, a checkpoint's class names in order, labels follow it.

    Raises VisqError when there is nothing such, when it holds no image, or when a class is not among `classes`.
    """
    if split not in ("calib", "test", "train"):
        raise VisqError(f"split must be calib, test or train, not {split!r}")
    parts = [data] if Path(data).exists() else [part for part in data.split(",") if part]
    records = [record for part in parts for record in _open_part(part, split, classes)]
    labels, names = _label(records, classes, data)
    return Dataset(data, records, labels, names, preprocess, strict=strict)


def _open_part(data: str, split: Split, classes: Sequence[str] | None) -> list[Record]:
    """List the records of one data source."""
    if data == FASHION_MNIST:
        part = "test" if split == "test" else "calib"
        images, labels = _embedded(part)
        return ArraySource(images).records(labels, FASHION_MNIST_CLASSES, f"{data}/{part}")
    path = Path(data.removeprefix("idx:")).expanduser()
    if data.startswith("idx:") or (path.is_dir() and has_idx(path)):
        images, labels = read_idx_pair(path, split)
        names = classes or [str(label) for label in range(int(labels.max(initial=0)) + 1)]
        return ArraySource(images).records(labels, names, split)
    if path.is_dir():
        return FolderSource(path).records(split)
    if path.is_file():
        return TarSource(path).records(split)
    raise VisqError(f"data {data!r}: no such folder or tar, and not {FASHION_MNIST}")


def _label(records: Sequence[Record], classes: Sequence[str] | None, data: str) -> tuple[list[int], Sequence[str]]:
    """Return a label for each record, and the class names they index."""
    found = {record.class_name for record in records}
    if None in found:
        if len(found) > 1:
            raise VisqError(f"data {data!r}: some images have class folders and some have none")
        return [UNLABELLED] * len(records), ()
    names = sorted(name for name in found if name is not None) if classes is None else list(classes)
    if classes is None and any(isinstance(record.source, ArraySource) for record in records):
        names = _numbered_or_fashion(found)
    index = {name: label for label, name in enumerate(names)}
    unknown = sorted(name for name in found if name is not None and name not in index)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise VisqError(
            f"data {data!r}: class {unknown[0]!r}{more} is not among the model's {len(names)} classes "
            f"({', '.join(names[:3])}, ...)"
        )
    return [index[record.class_name] for record in records if record.class_name is not None], names


def _numbered_or_fashion(found: set[str | None]) -> list[str]:
    """Order class names that stand for numbers by number, not by spelling."""
    names = {name for name in found if name is not None}
    if names <= set(FASHION_MNIST_CLASSES):
        return list(FASHION_MNIST_CLASSES)
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


@cache
def _embedded(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Load images [N, 28, 28] uint8 and labels [N] uint8 of the embedded set."""
    path = resources.files("visq.data") / "embedded" / f"{part}.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]
