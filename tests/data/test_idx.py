"""Folders of idx files, and files that lie about their shape or hold nothing."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from visq.data import Preprocess, open_dataset
from visq.data.idx import read_idx_pair
from visq.errors import VisqError


def write(folder: Path, shape: tuple[int, ...], body: bytes, labels: bytes, pack: bool = False) -> None:
    head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    name = "train-images-idx3-ubyte"
    (folder / name).unlink(missing_ok=True)
    (folder / f"{name}.gz").unlink(missing_ok=True)
    if pack:
        (folder / f"{name}.gz").write_bytes(gzip.compress(head + body))
    else:
        (folder / name).write_bytes(head + body)
    head = bytes([0, 0, 8, 1]) + np.array([len(labels)], ">u4").tobytes()
    (folder / "train-labels-idx1-ubyte").write_bytes(head + labels)


@pytest.mark.parametrize("pack", [False, True])
def test_whole(pack: bool, tmp_path: Path) -> None:
    write(tmp_path, (2, 3, 4), bytes(range(24)), b"\0\1", pack)
    images, labels = read_idx_pair(tmp_path, "train")
    assert np.array_equal(images, np.arange(24, dtype=np.uint8).reshape(2, 3, 4)) and labels.tolist() == [0, 1]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    "shape,body,message",
    [
        ((2, 3, 4), bytes(23), "the file holds 23 bytes"),
        ((2, 3, 4), bytes(25), "the file holds more"),
        ((2, 3), bytes(6), "not an idx file of unsigned bytes with 3 dimensions"),
        ((0, 3, 4), b"", "0 train images but 2 labels"),
        ((2, 0, 4), b"", r"shape \[2, 0, 4\] hold no pixels"),
        ((2**32 - 1,) * 3, b"", "too much for this machine"),
        ((2**32 - 1, 1, 1), b"", "the file holds 0 bytes"),
    ],
)
def test_refused(shape: tuple[int, ...], body: bytes, message: str, pack: bool, tmp_path: Path) -> None:
    write(tmp_path, shape, body, b"\0\1", pack)
    with pytest.raises(VisqError, match=message):
        read_idx_pair(tmp_path, "train")


def test_gzip_that_unpacks_to_more_than_its_header_says(tmp_path: Path) -> None:
    """Its 100 KB once became 100 MB before they were refused."""
    write(tmp_path, (2, 3, 4), bytes(10**8), b"\0\1", pack=True)
    with pytest.raises(VisqError, match="the file holds more"):
        read_idx_pair(tmp_path, "train")


def write_mnist(folder: Path, count: int = 12, classes: int = 3) -> None:
    for prefix in ("train", "t10k"):
        images = np.arange(count * 28 * 28, dtype=np.uint8).tobytes()
        labels = bytes(i % classes for i in range(count))
        header = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + np.array([count], ">u4").tobytes() + labels
        )


def test_folder_in_mnists_naming(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for data in (str(tmp_path), f"idx:{tmp_path}"):
        dataset = open_dataset(data, Preprocess.fashion_mnist(), split="train")
        assert len(dataset) == 12 and dataset.classes == ("0", "1", "2")
    named = open_dataset(str(tmp_path), Preprocess.fashion_mnist(), split="test", classes=["a", "b", "c"])
    assert named.classes == ("a", "b", "c") and named.labels[:4] == [0, 1, 2, 0]
    with pytest.raises(VisqError, match="label 2 but only 2 class names"):
        open_dataset(str(tmp_path), Preprocess.fashion_mnist(), split="test", classes=["a", "b"])
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"short")
    with pytest.raises(VisqError, match="not an idx file"):
        open_dataset(str(tmp_path), Preprocess.fashion_mnist(), split="test")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(VisqError, match="neither"):
        open_dataset(str(tmp_path), Preprocess.fashion_mnist(), split="test")
