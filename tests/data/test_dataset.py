"""A data set: subsets, fingerprints, what is skipped and said, memory and threads."""

from __future__ import annotations

import threading
import time
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.images import SMALL, values, write_images
from visq.data import Preprocess, open_dataset
from visq.data.dataset import mixed
from visq.errors import VisqError


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


def test_subset() -> None:
    dataset = open_dataset("fashion-mnist", Preprocess.fashion_mnist(), split="calib")
    first, again, other = dataset.subset(64, 3), dataset.subset(64, 3), dataset.subset(64, 4)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert torch.equal(next(first.batches(64))[0], next(again.batches(64))[0])
    with pytest.raises(VisqError, match="2049 images were asked for but only 2048"):
        dataset.subset(2049, 0)
    with pytest.raises(VisqError, match="0 images were asked for"):
        dataset.subset(0, 0)


def test_where_only_the_first_images_are_looked_at_they_are_drawn(tmp_path: Path) -> None:
    write_images(tmp_path)
    dataset = open_dataset(str(tmp_path), SMALL, split="test")
    drawn = mixed(dataset, 5, 0)
    assert len(set(dataset.labels[:5])) == 1 < len(set(drawn.labels[:5]))
    assert sorted(values(drawn)) == values(dataset) and values(drawn) == values(mixed(dataset, 5, 0))
    assert values(drawn) != values(mixed(dataset, 5, 1))
    assert mixed(dataset, None, 0) is dataset is mixed(dataset, len(dataset), 0)


def test_an_image_that_is_skipped_in_a_drawn_order_is_said_once(tmp_path: Path) -> None:
    write_images(tmp_path)
    dataset = open_dataset(str(tmp_path), SMALL, split="test")
    drawn = mixed(dataset, 3, 0)
    first = values(drawn)[0]  # the value of every pixel is the image's number
    broken = sorted(tmp_path.rglob("*.png"))[first]
    broken.write_bytes(b"\x89PNG and nothing more")
    dataset = open_dataset(str(tmp_path), SMALL, split="test")
    with pytest.warns(UserWarning, match=broken.name):
        batch, _ = next(mixed(dataset, 3, 0).pixel_batches(3))
    assert len(batch) == 3 and dataset.skipped == [f"{broken.parent.name}/{broken.name}"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(values(dataset)) == 9


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
