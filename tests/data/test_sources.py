"""Folders that hold more than images: links, pipes, files and folders that cannot be read."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

from tests.data.images import SMALL, write_images
from visq.data import Dataset, open_dataset
from visq.data.sources import read_file
from visq.errors import VisqError


def names(dataset: Dataset) -> list[str]:
    return [record.name for record in dataset._records]


def read(dataset: Dataset) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(len(labels) for _, labels in dataset.pixel_batches(4))


def test_links_to_a_folder_above_show_nothing_new(tmp_path: Path) -> None:
    """Two of them in one folder once made a walk of 2^40 steps."""
    write_images(tmp_path)
    for name in ("l", "m"):
        (tmp_path / "cat" / name).symlink_to(".")
        (tmp_path / "dog" / name).symlink_to("..")
    (tmp_path / "itself").symlink_to("itself")
    assert len(names(open_dataset(str(tmp_path), SMALL, split="test"))) == 10


def test_links_are_followed(tmp_path: Path) -> None:
    write_images(tmp_path / "pool")
    for split in ("train", "val"):  # one folder under two names
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / split).symlink_to("../pool")
    dataset = open_dataset(str(tmp_path / "set"), SMALL, split="test")
    assert dataset.classes == ("cat", "dog") and read(dataset) == 10


def test_links_that_never_end(tmp_path: Path) -> None:
    """A hundred folders, each shown twice by the one before it: 2^100 paths and no circle."""
    for i in range(100):
        (tmp_path / f"{i}").mkdir()
        for name in ("l", "m"):
            (tmp_path / f"{i}" / name).symlink_to(f"../{i + 1}")
    with pytest.raises(VisqError, match="links lead to this folder by more than 100 paths"):
        open_dataset(str(tmp_path / "0"), SMALL, split="test")


def test_what_only_looks_like_an_image_is_skipped_or_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "cat/dangling.png").symlink_to("nowhere.png")
    (tmp_path / "cat/itself.png").symlink_to("itself.png")
    os.mkfifo(tmp_path / "cat/pipe.png")
    (tmp_path / "cat/device.png").symlink_to("/dev/zero")
    with open(tmp_path / "cat/huge.png", "wb") as file:
        file.truncate(2 << 30)
    bad = ["cat/dangling.png", "cat/device.png", "cat/huge.png", "cat/itself.png", "cat/pipe.png"]
    dataset = open_dataset(str(tmp_path), SMALL, split="test")
    assert read(dataset) == 10 and dataset.skipped == bad
    assert dataset.fingerprint() == open_dataset(str(tmp_path), SMALL, split="test").fingerprint()
    for name in bad[:-1]:
        (tmp_path / name).unlink()
    with pytest.raises(VisqError, match=r"cat/pipe\.png cannot be read \(not an ordinary file\)"):
        list(open_dataset(str(tmp_path), SMALL, split="test", strict=True).batches(4))


def test_errors_of_reading_say_why(tmp_path: Path) -> None:
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(OSError, match=r"its 2\.1 GB are more than an image has"):
        read_file(tmp_path / "huge.png")
    with pytest.raises(OSError, match="not an ordinary file"):
        read_file(Path("/dev/null"))


def test_folders_that_cannot_be_listed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk once left them out without a word."""
    write_images(tmp_path)
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(VisqError, match=r"dog cannot be listed: Permission denied"):
        open_dataset(str(tmp_path), SMALL, split="test")


@pytest.mark.parametrize(
    "data,message",
    [
        ("", "name of the data is empty"),
        (",", "name of the data is empty"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("a\0b", "no such folder or tar"),
        ("~nobody-of-that-name/x", "cannot be read: Could not determine home directory"),
    ],
)
def test_names_that_no_data_can_have(data: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("a.png")  # the empty name must not mean the folder at hand
    with pytest.raises(VisqError, match=message) as caught:
        open_dataset(data, SMALL, split="test")
    assert len(str(caught.value)) < 300


def test_pipe_in_the_place_of_a_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "set.tar")
    with pytest.raises(VisqError, match="no such folder or tar"):
        open_dataset(str(tmp_path / "set.tar"), SMALL, split="test")


def test_names_that_are_not_text(tmp_path: Path) -> None:
    write_images(tmp_path)
    os.rename(tmp_path / "cat/0.png", os.fsencode(tmp_path) + b"/cat/\xff.png")
    dataset = open_dataset(str(tmp_path), SMALL, split="test")
    assert read(dataset) == 10 and len(dataset.fingerprint()) == 64
