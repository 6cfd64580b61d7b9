"""Opens what the word DATA on a command line can name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from visq.data.dataset import Dataset
from visq.data.idx import has_idx, read_idx_pair
from visq.data.labels import FASHION_MNIST_CLASSES, label
from visq.data.masks import without_masks
from visq.data.preprocess import Preprocess
from visq.data.records import Record
from visq.data.sources import ArraySource, FolderSource
from visq.data.tars import TarSource
from visq.errors import VisqError

Split = Literal["calib", "test", "train"]

FASHION_MNIST = "fashion-mnist"


def open_dataset(
    data: str | Path,
    preprocess: Preprocess,
    *,
    split: Split,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> Dataset:
    """Opens the images that `data` names.

    Arguments:
        data: `fashion-mnist` (embedded: `test` has 10,000 images, `calib` and `train` the same 2,048 training images);
            a folder of class folders, of split folders of those (train, val), or of images without labels; a `.tar` or
            `.tar.gz` of one; a folder of idx files in MNIST's naming (`idx:FOLDER` says so outright); or several of
            these joined with commas. Of `images` and `labels` with masks, the images are taken, without labels.
        split: what the images are for.
        classes: a checkpoint's class names in order, which labels follow. Without them classes are ordered by name,
            and by number where all of them are numbers.
        strict: refuses an image that cannot be read, where it would be skipped otherwise.
    Raises:
        VisqError: there is nothing such, it holds no image, or a class is not among `classes`.
    """
    if split not in ("calib", "test", "train"):
        raise VisqError(f"split must be calib, test or train, not {split!r}")
    data = str(data)
    parts = [data] if _exists(data) else [part for part in data.split(",") if part]
    if not data.strip(",") or not parts:
        raise VisqError("the name of the data is empty; give a folder, a tar or fashion-mnist")
    records = [record for part in parts for record in without_masks(_open_part(part, split, classes))]
    labels, names = label(records, classes, data, warn=split != "calib")
    return Dataset(data, records, labels, names, preprocess, strict=strict)


def _short(data: str) -> str:
    return repr(data if len(data) <= 200 else f"{data[:200]}...")


def _exists(data: str) -> bool:
    try:
        return bool(data) and Path(data).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _open_part(data: str, split: Split, classes: Sequence[str] | None) -> list[Record]:
    """Lists the records of one data source."""
    if data == FASHION_MNIST:
        part = "test" if split == "test" else "calib"
        images, labels = _embedded(part)
        return ArraySource(images).records(labels, FASHION_MNIST_CLASSES, f"{data}/{part}")
    try:
        path = Path(data.removeprefix("idx:")).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
        is_idx = data.startswith("idx:") or (is_folder and has_idx(path))
    except (OSError, ValueError, RuntimeError) as error:
        raise VisqError(f"data {_short(data)} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if is_idx:
        images, labels = read_idx_pair(path, split)
        names = classes or [str(label) for label in range(int(labels.max(initial=0)) + 1)]
        return ArraySource(images).records(labels, names, split)
    if is_folder:
        return FolderSource(path).records(split)
    if is_file:
        return TarSource(path).records(split)
    has = f"{FASHION_MNIST} for the images that visq has"
    raise VisqError(f"data {_short(data)}: no such folder or tar; give the path of one, or {has}")


@cache
def _embedded(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [N, 28, 28] uint8 and labels [N] uint8 of the embedded set."""
    path = resources.files("visq.data") / "embedded" / f"{part}.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]
