"""Data sets from arrays, tensors, images, paths and loaders, and from what is none of these."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from tests.data.images import SMALL, encode, noise, write_images
from visq.data import Dataset, as_dataset, open_dataset
from visq.errors import VisqError

COLOURS = np.stack([noise(8, 8, seed) for seed in range(5)])
NORMALIZED = SMALL.normalize(torch.from_numpy(COLOURS.transpose(0, 3, 1, 2).copy()))


def given(data: Any, **options: Any) -> Dataset:
    return as_dataset(data, SMALL, split="calib", **options)


def images(dataset: Dataset) -> torch.Tensor:
    return torch.cat([images for images, _ in dataset.batches(2)])


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(NORMALIZED, torch.arange(5)), batch_size=2, **options)


def endless() -> Iterator[torch.Tensor]:
    yield from itertools.cycle(NORMALIZED)


@pytest.mark.parametrize(
    "data",
    [
        COLOURS,
        list(COLOURS),
        [Image.fromarray(image) for image in COLOURS],
        (Image.fromarray(image) for image in COLOURS),
        NORMALIZED,
        NORMALIZED.double(),
        NORMALIZED.numpy(),
        list(NORMALIZED),
        [NORMALIZED[:2], NORMALIZED[2:]],
        DataLoader(NORMALIZED, batch_size=2),  # type: ignore[arg-type]
        loader(),
        (NORMALIZED, torch.arange(5)),
        [(image, label) for label, image in enumerate(COLOURS)],
    ],
    ids=lambda data: type(data).__name__,
)
def test_every_form_gives_the_same_images(data: Any) -> None:
    dataset = given(data)
    assert len(dataset) == 5 and torch.allclose(images(dataset), NORMALIZED, atol=1e-6)


def test_paths_and_names(tmp_path: Path) -> None:
    write_images(tmp_path)
    whole = open_dataset(str(tmp_path), SMALL, split="calib")
    assert given(tmp_path).fingerprint() == given(str(tmp_path)).fingerprint() == whole.fingerprint()
    assert given(tmp_path, samples=3, seed=1).fingerprint() == whole.subset(3, 1).fingerprint()
    assert given(whole, samples=3) is whole
    files = given(sorted(tmp_path.rglob("*.png")))
    assert torch.equal(images(files), images(whole)) and not files.labelled


def test_only_so_many_are_taken() -> None:
    assert torch.equal(images(given(endless(), samples=7)), NORMALIZED[[0, 1, 2, 3, 4, 0, 1]])
    assert len(given(loader(), samples=3)) == 3


def test_labels() -> None:
    assert given(loader()).labels == [0, 1, 2, 3, 4] and given(loader()).classes == ("0", "1", "2", "3", "4")
    assert given(loader(), classes=list("abcdef")).classes == tuple("abcdef")
    with pytest.raises(VisqError, match=r"labels of 0\.\.4 but 4 classes"):
        given(loader(), classes=list("abcd"))
    assert not given(NORMALIZED).labelled
    with pytest.raises(VisqError, match="some images have labels and some have none"):
        given([(NORMALIZED[0], 1), NORMALIZED[1]])
    with pytest.raises(VisqError, match="5 images but 4 labels"):
        given([(NORMALIZED, torch.arange(4))])


def test_subsets_and_fingerprints_of_tensors() -> None:
    dataset = given(NORMALIZED)
    assert torch.equal(images(dataset.select([3, 1])), NORMALIZED[[3, 1]])
    assert dataset.fingerprint() == given(list(NORMALIZED)).fingerprint()
    assert dataset.fingerprint() != given(NORMALIZED + 1e-3).fingerprint()
    with pytest.raises(VisqError, match="normalized already"):
        next(dataset.pixel_batches(2))


@pytest.mark.parametrize(
    "data,message",
    [
        (None, "cannot be taken from an object of type NoneType"),
        (3, "cannot be taken from an object of type int"),
        ([], "no images are given"),
        ([{"image": NORMALIZED}], "an image cannot be an object of type dict"),
        ([None], "an image cannot be an object of type NoneType"),
        (NORMALIZED[:, :, :4], r"image 0: the model takes \[3, 8, 8\] float32, normalized, not \[3, 4, 8\] float32"),
        (NORMALIZED[:, :1], r"not \[1, 8, 8\] float32"),
        (NORMALIZED.numpy().astype(np.int64), r"not \[3, 8, 8\] int64"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"image 0: uint8 pixels must be \[H, W\] or \[H, W, 3\], not \[3, 8, 8\]"),
        (torch.full((2, 3, 8, 8), float("nan")), "image 0 holds NaN or Inf"),
        ([NORMALIZED[0], torch.full((3, 8, 8), float("inf"))], "image 1 holds NaN or Inf"),
        ([NORMALIZED[0], COLOURS[0]], r"different kinds are given together \(normalized tensors, uint8 pixels\)"),
        ([Image.fromarray(np.zeros((8, 8), np.float32))], "image 0 cannot be read: floating-point pixels"),
    ],
)
def test_what_is_refused(data: Any, message: str) -> None:
    with pytest.raises(VisqError, match=message):
        given(data)


def test_pixels_in_the_place_of_normalized_values_are_said() -> None:
    with pytest.warns(UserWarning, match="values up to 255, so they do not look normalized"):
        given(torch.from_numpy(COLOURS.transpose(0, 3, 1, 2).astype(np.float32)).clamp_min(255))


def test_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(COLOURS[0])))
    dataset = given([tmp_path / "a.png", tmp_path / "b.png"])
    with pytest.warns(UserWarning, match=r"b\.png cannot be read and is skipped"):
        assert len(images(dataset)) == 1
