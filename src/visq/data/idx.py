"""The idx format of MNIST: big-endian header, then raw bytes, optionally gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from visq.errors import VisqError

_PREFIX = {"train": "train", "calib": "train", "test": "t10k"}


def has_idx(folder: Path) -> bool:
    """Say whether `folder` holds idx files in MNIST's naming."""
    return any(_find(folder, f"{prefix}-images-idx3-ubyte") for prefix in set(_PREFIX.values()))


def read_idx_pair(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the images [N, H, W] uint8 and labels [N] uint8 of a split.

    Raises VisqError when a file is missing, damaged or the two disagree.
    """
    prefix = _PREFIX[split]
    images = _read(_require(folder, f"{prefix}-images-idx3-ubyte"), dims=3)
    labels = _read(_require(folder, f"{prefix}-labels-idx1-ubyte"), dims=1)
    if len(images) != len(labels):
        raise VisqError(f"{folder}: {len(images)} {prefix} images but {len(labels)} labels")
    return images, labels


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _require(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise VisqError(f"{folder}: neither {name} nor {name}.gz is there")
    return path


def _read(path: Path, dims: int) -> np.ndarray:
    """Read one idx file of unsigned bytes with `dims` dimensions."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise VisqError(f"{path}: cannot be read ({error})") from error
    header = 4 + 4 * dims
    if len(raw) < header or raw[:4] != bytes([0, 0, 8, dims]):
        raise VisqError(f"{path}: not an idx file of unsigned bytes with {dims} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=dims, offset=4))
    if len(raw) - header != int(np.prod(shape)):
        raise VisqError(f"{path}: the header says shape {shape}, the file holds {len(raw) - header} bytes")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
