"""idx files that lie about their shape or hold nothing."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

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
