"""The idx format of MNIST: big-endian header, then raw bytes, optionally gzipped."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from visq.errors import VisqError

_PREFIX = {"train": "train", "calib": "train", "test": "t10k"}


def has_idx(folder: Path) -> bool:
    """Returns whether `folder` holds idx files in MNIST's naming."""
    return any(_find(folder, f"{prefix}-images-idx3-ubyte") for prefix in set(_PREFIX.values()))


def read_idx_pair(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images [N, H, W] uint8 and labels [N] uint8 of a split.

    Raises:
        VisqError: a file is missing, damaged, or too large for the machine, or the two disagree.
    """
    prefix = _PREFIX[split]
    images = _read(_require(folder, f"{prefix}-images-idx3-ubyte"), dims=3)
    labels = _read(_require(folder, f"{prefix}-labels-idx1-ubyte"), dims=1)
    if len(images) != len(labels):
        raise VisqError(f"{folder}: {len(images)} {prefix} images but {len(labels)} labels")
    if images.size == 0:
        raise VisqError(f"{folder}: {prefix} images of shape {list(images.shape)} hold no pixels")
    return images, labels


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _require(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise VisqError(f"{folder}: neither {name} nor {name}.gz is there")
    return path


def _read(path: Path, dims: int) -> np.ndarray:
    """Returns the array of one idx file of unsigned bytes with `dims` dimensions."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return _parse(path, file, dims)
    except (OSError, EOFError, zlib.error) as error:
        raise VisqError(f"{path}: cannot be read ({error})") from error


def _parse(path: Path, file: BinaryIO | gzip.GzipFile, dims: int) -> np.ndarray:
    """Reads header and array; no more bytes than the header announces, whatever a gzipped file unpacks to."""
    header = file.read(4 + 4 * dims)
    if len(header) < 4 + 4 * dims or header[:4] != bytes([0, 0, 8, dims]):
        raise VisqError(f"{path}: not an idx file of unsigned bytes with {dims} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    size = math.prod(shape)
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        raise VisqError(f"{path}: the header says shape {shape}, {size / 1e9:.1f} GB, too much for this machine")
    raw = bytearray()
    while len(raw) < size and (piece := file.read(min(size - len(raw), 1 << 24))):
        raw += piece
    if len(raw) < size or file.read(1):
        there = "more" if len(raw) == size else f"{len(raw)} bytes"
        raise VisqError(f"{path}: the header says shape {shape}, the file holds {there}")
    return np.frombuffer(raw, np.uint8).reshape(shape)
