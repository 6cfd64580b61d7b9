"""Opening folders, tars and the embedded set: order, labels, splits, errors."""

from __future__ import annotations

import bz2
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.images import SMALL, values, write_images
from visq.data import FASHION_MNIST_CLASSES, Preprocess, open_dataset
from visq.errors import VisqError

IMAGENETTE = Path(__file__).parents[3] / "shared/data/imagenette"


def write_tar(folder: Path, path: Path, arcname: str = ".") -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname)
    return path


def test_folder(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "cat/notes.txt").write_text("not an image")
    (tmp_path / "cat/._0.png").write_text("left by a Mac")
    dataset = open_dataset(str(tmp_path), SMALL, split="test")
    assert len(dataset) == 10 and dataset.classes == ("cat", "dog") and dataset.labels == [0] * 5 + [1] * 5
    assert values(dataset) == list(range(10))
    images, labels = next(dataset.batches(4))
    assert images.shape == (4, 3, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.allclose(images[1], torch.full((3, 8, 8), (1 / 255 - 0.5) / 0.5))


def test_tar_equals_folder(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set/train")
    tar = write_tar(folder.parent, tmp_path / "set.tar")
    nested = write_tar(folder.parent, tmp_path / "nested.tar", "set")
    first = open_dataset(str(folder), SMALL, split="calib")
    for data in (tmp_path / "set", tar, nested):
        other = open_dataset(str(data), SMALL, split="calib")
        assert values(other) == values(first) and other.labels == first.labels
        assert other.fingerprint() == first.fingerprint()
        assert values(other.subset(4, seed=1)) == values(first.subset(4, seed=1))


def test_split_folders_beside_each_other(tmp_path: Path) -> None:
    write_images(tmp_path / "train", each=3)
    write_images(tmp_path / "val", each=2)
    assert len(open_dataset(str(tmp_path), SMALL, split="calib")) == 6
    assert len(open_dataset(str(tmp_path), SMALL, split="test")) == 4


def test_joined(tmp_path: Path) -> None:
    one = write_tar(write_images(tmp_path / "one", ("b",), 2), tmp_path / "one.tar")
    two = write_tar(write_images(tmp_path / "two", ("a", "c"), 2), tmp_path / "two.tar")
    dataset = open_dataset(f"{one},{two}", SMALL, split="train")
    assert dataset.classes == ("a", "b", "c") and dataset.labels == [1, 1, 0, 0, 2, 2]
    assert values(dataset) == [0, 1, 0, 1, 2, 3]


def test_classes_give_the_labels(tmp_path: Path) -> None:
    write_images(tmp_path)
    dataset = open_dataset(str(tmp_path), SMALL, split="test", classes=["dog", "bird", "cat"])
    assert dataset.labels == [2] * 5 + [0] * 5 and dataset.classes == ("dog", "bird", "cat")
    with pytest.raises(VisqError, match="'dog' is not among"):
        open_dataset(str(tmp_path), SMALL, split="test", classes=["cat", "bird"])


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    dataset = open_dataset(str(tmp_path), SMALL, split="calib", classes=["cat"])
    assert not dataset.labelled and dataset.labels == [-1]
    write_images(tmp_path)
    with pytest.raises(VisqError, match="different depths"):
        open_dataset(str(tmp_path), SMALL, split="calib")


def test_opening_errors(tmp_path: Path) -> None:
    with pytest.raises(VisqError, match="no such folder or tar"):
        open_dataset(str(tmp_path / "nowhere"), SMALL, split="test")
    with pytest.raises(VisqError, match="no images"):
        open_dataset(str(tmp_path), SMALL, split="test")
    with pytest.raises(VisqError, match="split"):
        open_dataset("fashion-mnist", SMALL, split="val")  # type: ignore[arg-type]
    tar = write_tar(write_images(tmp_path / "set"), tmp_path / "set.tar")
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tar.read_bytes()[:2000])
    packed = tmp_path / "set.tar.bz2"
    packed.write_bytes(bz2.compress(tar.read_bytes()))
    for path in (cut, packed):
        with pytest.raises(VisqError, match=r"not a whole tar or tar\.gz"):
            open_dataset(str(path), SMALL, split="test")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"PK\x03\x04", "is a zip, not a tar; unpack it and give its folder"),
        (b"\xff\xd8\xff\xe0", "is an image, not a tar; give the folder that holds it"),
        (b"name,label\n", "give a tar or a folder of images"),
    ],
)
def test_files_that_are_no_tar(head: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "given"
    path.write_bytes(head + bytes(600))
    with pytest.raises(VisqError, match=message):
        open_dataset(str(path), SMALL, split="test")


def test_embedded_fashion_mnist() -> None:
    test = open_dataset("fashion-mnist", Preprocess.fashion_mnist(), split="test")
    calib = open_dataset("fashion-mnist", Preprocess.fashion_mnist(), split="calib")
    assert len(test) == 10_000 and len(calib) == 2048 and test.classes == FASHION_MNIST_CLASSES
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert set(np.bincount(calib.labels).tolist()) == {204, 205}
    images, labels = next(test.batches(256))
    assert images.shape == (256, 1, 28, 28) and abs(float(images.mean())) < 0.05 and labels[0] == 9
    assert test.fingerprint() != calib.fingerprint()
    embedded = Path(__file__).parents[2] / "src/visq/data/embedded"
    assert sum(path.stat().st_size for path in embedded.iterdir()) < 6e6
    assert "Zalando" in (embedded / "LICENSE").read_text()


@pytest.mark.skipif(
    not (IMAGENETTE / "val.tar").is_file(), reason="shared/data/imagenette is not beside the repository"
)
def test_imagenette() -> None:
    transform = Preprocess.imagenet(224, 224)
    dataset = open_dataset(str(IMAGENETTE / "val.tar"), transform, split="test")
    assert len(dataset) == 1982 and len(dataset.classes) == 10 and dataset.classes[0] == "n01440764"
    images, labels = next(dataset.subset(32, 0).batches(32))
    assert images.shape == (32, 3, 224, 224) and 0.5 < float(images.std()) < 2 and len(labels.unique()) > 4
    shards = ",".join(str(IMAGENETTE / f"train-{i}.tar") for i in range(3))
    assert len(open_dataset(shards, transform, split="train", classes=dataset.classes)) == 9469
