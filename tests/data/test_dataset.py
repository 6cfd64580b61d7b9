"""Opening folders, tars and the embedded set; order, subsets, skipping."""

from __future__ import annotations

import bz2
import gzip
import tarfile
import threading
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.images import SMALL, write_images
from visq.data import FASHION_MNIST_CLASSES, Dataset, Preprocess, open_dataset
from visq.errors import VisqError

IMAGENETTE = Path(__file__).parents[3] / "shared/data/imagenette"


def write_tar(folder: Path, path: Path, arcname: str = ".") -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname)
    return path


def values(dataset: Dataset, batch_size: int = 3) -> list[int]:
    return [int(v) for pixels, _ in dataset.pixel_batches(batch_size) for v in pixels[:, 0, 0, 0]]


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


def test_orientation_and_transparency_are_said_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"turned{i}.png", exif=exif)
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / f"clear{i}.png")
    dataset = open_dataset(str(tmp_path), SMALL, split="test")
    with pytest.warns(UserWarning) as caught:
        assert values(dataset) == [255] * 3 + [0] * 3
    said = [str(warning.message).partition(": ")[2] for warning in caught]
    assert [line.split(",")[0] for line in said] == [
        "clear0.png has transparent pixels",
        "turned0.png has an EXIF orientation",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values(dataset)


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


def test_subset() -> None:
    dataset = open_dataset("fashion-mnist", Preprocess.fashion_mnist(), split="calib")
    first, again, other = dataset.subset(64, 3), dataset.subset(64, 3), dataset.subset(64, 4)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert torch.equal(next(first.batches(64))[0], next(again.batches(64))[0])
    with pytest.raises(VisqError, match="2049 images were asked for but only 2048"):
        dataset.subset(2049, 0)
    with pytest.raises(VisqError, match="0 images were asked for"):
        dataset.subset(0, 0)


def test_fingerprint_says_what_differs(tmp_path: Path) -> None:
    write_images(tmp_path)
    prints = [
        open_dataset(str(tmp_path), SMALL, split="test").fingerprint(),
        open_dataset(str(tmp_path), Preprocess(4, 8, mean=(0.5,) * 3, std=(0.5,) * 3), split="test").fingerprint(),
        open_dataset(str(tmp_path), SMALL, split="test", classes=["dog", "cat"]).fingerprint(),
    ]
    Image.new("RGB", (8, 8), (77,) * 3).save(tmp_path / "cat/0.png")
    size = (tmp_path / "cat/0.png").stat().st_size
    for value in (78, 79):  # another image under the same name, with the same size
        Image.new("RGB", (8, 8), (value,) * 3).save(tmp_path / "cat/0.png")
        assert (tmp_path / "cat/0.png").stat().st_size == size
        prints.append(open_dataset(str(tmp_path), SMALL, split="test").fingerprint())
    (tmp_path / "cat/0.png").unlink()
    prints.append(open_dataset(str(tmp_path), SMALL, split="test").fingerprint())
    assert len(set(prints)) == len(prints)


def test_fingerprint_of_a_subset_reads_its_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subset = open_dataset(str(write_images(tmp_path)), SMALL, split="calib").subset(4, 0)
    reads: list[Path] = []
    monkeypatch.setattr("visq.data.sources.read_file", lambda path: reads.append(path) or path.read_bytes())
    assert subset.fingerprint() == subset.fingerprint() and len(reads) == len(set(reads)) == 4


def test_corrupt_image_is_skipped_or_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "cat/2.png").write_bytes(b"\x89PNG and nothing more")
    dataset = open_dataset(str(tmp_path), SMALL, split="test")
    with pytest.warns(UserWarning, match=r"cat/2\.png"):
        batches = list(dataset.pixel_batches(3))
    assert [len(labels) for _, labels in batches] == [3, 3, 3] and dataset.skipped == ["cat/2.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a second pass says nothing new
        assert values(dataset) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert len(dataset.skipped) == 1
    with pytest.raises(VisqError, match=r"cat/2\.png cannot be read"):
        list(open_dataset(str(tmp_path), SMALL, split="test", strict=True).batches(3))


@pytest.mark.filterwarnings("ignore")
def test_all_corrupt(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(VisqError, match="none of 1 images"):
        list(open_dataset(str(tmp_path), SMALL, split="test").batches(2))


def test_vanished_file_is_skipped(tmp_path: Path) -> None:
    dataset = open_dataset(str(write_images(tmp_path)), SMALL, split="test")
    (tmp_path / "dog/4.png").unlink()
    with pytest.warns(UserWarning, match=r"dog/4\.png"):
        assert len(values(dataset)) == 9


@pytest.mark.filterwarnings("ignore")
def test_memory_is_bounded_when_much_is_skipped(tmp_path: Path) -> None:
    """Half of 400 images of 96 kB are damaged; a pass must hold a batch and a look-ahead, not the 19 MB that decode."""
    transform = Preprocess(180, 180, mean=(0.5,) * 3, std=(0.5,) * 3)
    for i in range(400):
        path = tmp_path / f"{i:03d}.png"
        Image.new("RGB", (180, 180), (i % 256, 0, 0)).save(path)
        if i % 2:
            path.write_bytes(path.read_bytes()[:100])
    dataset = open_dataset(str(tmp_path), transform, split="test")
    tracemalloc.start()
    count = sum(len(labels) for _, labels in dataset.pixel_batches(4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200 and len(dataset.skipped) == 200 and peak < 6e6


def test_abandoned_iteration_stops_its_threads() -> None:
    dataset = open_dataset("fashion-mnist", Preprocess.fashion_mnist(), split="test")
    before = set(threading.enumerate())
    batches = dataset.batches(10)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while any(thread.is_alive() for thread in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


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


def write_idx(folder: Path, count: int = 12, classes: int = 3) -> None:
    for prefix in ("train", "t10k"):
        images = np.arange(count * 28 * 28, dtype=np.uint8).tobytes()
        labels = bytes(i % classes for i in range(count))
        header = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + np.array([count], ">u4").tobytes() + labels
        )


def test_idx(tmp_path: Path) -> None:
    write_idx(tmp_path)
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
