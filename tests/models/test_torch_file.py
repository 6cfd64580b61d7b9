"""Tests files of torch.save: every tensor comes back, and no file takes more memory than it has bytes."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from visq.errors import VisqError
from visq.models import read_checkpoint
from visq.models.torch_file import MOST_STRUCTURE, StoredTensor, read_torch_file


def rewritten(path: Path, compression: int = zipfile.ZIP_STORED, **replaced: bytes) -> Path:
    """Writes the same archive with other contents or compression."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    new = path.with_name(f"new_{path.name}")
    with zipfile.ZipFile(new, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, replaced.get(name.rpartition("/")[2].replace(".", "_"), data))
    return new


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_of_every_kind_come_back(tmp_path: Path, legacy: bool) -> None:
    base = torch.randn(6, 8)
    tensors = {
        "plain": torch.randn(2, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "view": base[1:3, ::2],
        "transposed": base.T,
        "row": base[5],
        "parameter": nn.Parameter(torch.randn(3)),
        "expanded": torch.arange(4.0).expand(3, 4),
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "double": torch.randn(3).double(),
        "long": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64),
    }
    if not legacy:
        tensors["float8"] = torch.randn(5).to(torch.float8_e4m3fn)
    torch.save({"model": tensors}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    file = read_torch_file(tmp_path / "a.pth")
    stored = dict(file.content["model"])
    assert all(isinstance(tensor, StoredTensor) for tensor in stored.values())
    found = file.tensors(stored)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(
            found[name].view(torch.uint8) if name == "float8" else found[name],
            tensor.view(torch.uint8) if name == "float8" else tensor,
        ), name
    assert found["view"].data_ptr() - found["row"].data_ptr() == (8 - 40) * 4  # one storage, one memory


def test_only_the_tensors_asked_for_are_read(tmp_path: Path) -> None:
    """A damaged optimizer does not matter, and a damaged weight does."""
    path = tmp_path / "a.pth"
    torch.save({"model": {"head.weight": torch.ones(3), "b": torch.ones(2)}, "optimizer": torch.ones(1000)}, path)
    data = bytearray(path.read_bytes())
    where = data.index(struct.pack("<f", 1.0) * 1000)
    data[where + 400] ^= 1
    path.write_bytes(data)
    assert read_checkpoint(path).tensors["head.weight"].tolist() == [1, 1, 1]
    data[data.index(struct.pack("<f", 1.0) * 3)] ^= 1
    path.write_bytes(data)
    with pytest.raises(VisqError, match=r"a\.pth is damaged .*CRC"):
        read_checkpoint(path)


def test_a_compressed_archive_is_refused_at_once(tmp_path: Path) -> None:
    """5 MB that unpack to 4 GB took 4.3 GB and 43 s; the process here may have 200 MB more than it starts with."""
    path = tmp_path / "bomb.pth"
    torch.save({"model": {"head.weight": torch.zeros(30_000_000)}}, path)
    bomb = rewritten(path, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1_000_000
    code = (
        "import sys, resource\nfrom visq.models import read_checkpoint\nfrom visq.errors import VisqError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_checkpoint(sys.argv[1])\nexcept VisqError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bomb)], capture_output=True, text=True, check=True)
    message, grown = done.stdout.splitlines()
    assert "new_bomb.pth: " in message and "in it is compressed" in message
    assert int(grown) < 50_000
    start = time.perf_counter()
    with pytest.raises(VisqError, match="compressed"):
        read_checkpoint(bomb)
    assert time.perf_counter() - start < 1


def window_pickle(size: tuple, stride: tuple, count: int = 4, offset: int = 0) -> bytes:
    """Returns the pickle of two tensors that are this window of storage 0, as torch writes it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if value == "STORAGE" else None

    class Window:
        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor_v2, ("STORAGE", offset, size, stride, False, None)

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"model": {"w.x": Window(), "v.y": Window()}})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "stride", "count", "offset"),
    [
        ((5,), (1,), 4, 0),
        ((4,), (2,), 4, 0),
        ((2,), (1,), 4, 3),
        ((1 << 30, 1 << 10), (0, 0), 4, 0),
        ((4,), (-1,), 4, 3),
        ((1 << 62,), (1,), 4, 0),
        ((4,), (1,), 1 << 40, 0),
        ((4,), (1,), 5, 0),
        ((2, 2), (1,), 4, 0),
        (("a",), (1,), 4, 0),
    ],
)
def test_windows_outside_of_their_storage(tmp_path: Path, size: tuple, stride: tuple, count: int, offset: int) -> None:
    torch.save({"model": {"w": torch.ones(4)}}, tmp_path / "a.pth")
    path = rewritten(tmp_path / "a.pth", data_pkl=window_pickle(size, stride, count, offset))
    with pytest.raises(VisqError, match=r"new_a\.pth is damaged"):
        read_checkpoint(path)


def test_a_window_inside_of_its_storage(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.arange(4.0)}}, tmp_path / "a.pth")
    path = rewritten(tmp_path / "a.pth", data_pkl=window_pickle((2, 2), (2, 1)))
    assert read_checkpoint(path).tensors["w.x"].tolist() == [[0, 1], [2, 3]]


def test_a_description_that_is_too_long(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(4)}, "log": "x" * MOST_STRUCTURE}, tmp_path / "a.pth")
    with pytest.raises(VisqError, match=r"describes its contents takes 8\.4 MB.*save only the weights"):
        read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps("x" * (MOST_STRUCTURE + 1), 2))
    with pytest.raises(VisqError, match=r"b\.pth: what describes its contents takes"):
        read_checkpoint(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: torch.jit.script(nn.Linear(2, 2)).save(path), "is a TorchScript program"),
        (lambda path: torch.save(nn.Linear(2, 2), path), r"holds a whole model \(torch\.nn\.modules\.linear\.Linear\)"),
        (lambda path: torch.save({"model": nn.Linear(2, 2)}, path), "holds a whole model"),
        (lambda path: np.savez(path, w=np.ones(2)), r"is a zip archive without a torch checkpoint.*NumPy \.npz"),
        (lambda path: path.write_bytes(pickle.dumps({"w": 1})), "was written by pickle, not by torch.save"),
    ],
)
def test_files_of_other_writers(tmp_path: Path, build: object, message: str) -> None:
    path = tmp_path / "model.pth"
    build(path)  # type: ignore[operator]
    path = next(tmp_path.iterdir())
    path = path.rename(tmp_path / "model.pth")
    with pytest.raises(VisqError, match=rf"model\.pth {message}"):
        read_checkpoint(path)


def test_a_zip_of_a_checkpoint_says_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("weights/model.pth", b"x")
    with pytest.raises(VisqError, match=r"unpack it and give weights/model\.pth"):
        read_checkpoint(tmp_path / "model.zip")
