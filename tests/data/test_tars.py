"""Tars: compressed ones, and metadata that lies."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import warnings
from pathlib import Path

import pytest
from PIL import Image

from tests.data.images import SMALL, encode, noise, values, write_images
from visq.data import Dataset, open_dataset
from visq.errors import VisqError


def open_tar(path: Path) -> Dataset:
    return open_dataset(str(path), SMALL, split="test")


@pytest.mark.parametrize("suffix", ["tgz", "tar.gz", "tar"])
def test_gzipped_tar_equals_its_folder(suffix: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set")
    (folder / "cat/linked.png").hardlink_to(folder / "cat/0.png")
    (folder / "cat/notes.txt").write_text("no image")
    path = tmp_path / f"set.{suffix}"
    with tarfile.open(path, "w" if suffix == "tar" else "w:gz") as archive:
        archive.add(folder, "set")
    dataset = open_tar(path)
    assert len(dataset) == 11 and dataset.fingerprint() == open_tar(folder).fingerprint()
    assert sorted(values(dataset)) == sorted(values(open_tar(folder)))


def test_cut_and_damaged_gzip(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(write_images(tmp_path / "set"), "set")
    packed = gzip.compress((tmp_path / "set.tar").read_bytes())
    flipped = bytearray(packed)
    flipped[-6] ^= 1  # the checksum
    for number, data in enumerate((packed[:-9], packed[: len(packed) // 2], packed[:12], bytes(flipped))):
        path = tmp_path / f"{number}.tgz"
        path.write_bytes(data)
        with pytest.raises(VisqError, match=rf"{number}\.tgz: not a whole tar or tar\.gz"):
            open_tar(path)


def test_gzip_bombs_are_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visq.data.tars._ALLOWANCE", 1 << 16)
    member = tarfile.TarInfo("cat/0.png")
    member.size = 1 << 24
    with tarfile.open(tmp_path / "inside.tgz", "w:gz") as archive:
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    (tmp_path / "behind.tgz").write_bytes(gzip.compress(bytes(1 << 24)))
    for name in ("inside", "behind"):
        with pytest.raises(VisqError, match="unpacks to more than 100 times its size"):
            open_tar(tmp_path / f"{name}.tgz")


def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as archive:
        archive.add(write_images(tmp_path / "set"), "set")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2000}))
    with pytest.raises(VisqError, match="too large to unpack"):
        open_tar(tmp_path / "set.tgz")


def write_member(path: Path, **fields: object) -> Path:
    """Writes a tar of one image whose header says what `fields` says."""
    data = encode(Image.fromarray(noise(8, 8)))
    member = tarfile.TarInfo("cat/0.png")
    member.size = len(data)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(data))
    raw = bytearray(path.read_bytes())
    for name, value in fields.items():
        setattr(member, name, value)
    raw[:512] = member.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(raw)
    return path


def test_sizes_that_lie(tmp_path: Path) -> None:
    assert len(open_tar(write_member(tmp_path / "right.tar"))) == 1
    for size in (-512, -1, -(1 << 40), 1 << 20, 1 << 50, (1 << 63) - 1):
        with pytest.raises(VisqError, match=r"lies\.tar: not a whole tar or tar\.gz"):
            open_tar(write_member(tmp_path / "lies.tar", size=size))


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_of_any_bytes(packed: bool, tmp_path: Path) -> None:
    """Every damaged tar opens or is refused in one line; no other error, no endless loop."""
    folder = write_images(tmp_path / "set", each=2)
    long_name = "y" * 150
    (folder / "cat/0.png").rename(folder / f"cat/{long_name}.png")
    rng, outcomes = random.Random(0), set()
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "set.tar", "w", format=form) as archive:
            archive.add(folder, "set")
        whole = (tmp_path / "set.tar").read_bytes()
        headers = [i for i in range(0, len(whole), 512) if whole[i + 257 : i + 262] == b"ustar"]
        for _ in range(150):
            raw = bytearray(whole)
            header = rng.choice(headers)
            for _ in range(rng.randint(1, 3)):
                raw[header + rng.choice([rng.randrange(512), rng.randrange(512, 1024), 124 + rng.randrange(12)])] = (
                    rng.randrange(256)
                )
            raw[header + 148 : header + 156] = b"%06o\0 " % (
                sum(raw[header : header + 512]) - sum(raw[header + 148 : header + 156]) + 8 * 32
            )
            path = tmp_path / "damaged"
            path.write_bytes(gzip.compress(raw) if packed else raw)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    values(open_tar(path))
                    outcomes.add("opened")
                except VisqError as error:
                    assert "\n" not in str(error)
                    outcomes.add("refused")
    assert outcomes == {"opened", "refused"}
