"""Tests which files are read, refused and written."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visq.data import Preprocess
from visq.errors import VisqError
from visq.models import VisionMamba, load_model, read_checkpoint, save_checkpoint
from visq.quant.site import named_sites

Tensors = dict[str, Tensor]


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_safetensors_round_trip(small: VisionMamba, small_tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    save_checkpoint(small, path, classes=("a", "b", "c", "d", "e"))
    read = read_checkpoint(path)
    assert same(read.tensors, small_tensors)
    assert (read.notes["image_size"], read.notes["stride"], read.notes["classes"]) == (12, 4, list("abcde"))
    assert Preprocess.from_dict(read.notes["preprocess"]) == small.card.preprocess
    assert os.listdir(path.parent) == ["model.safetensors"]


def test_the_same_weights_give_the_same_bytes(small: VisionMamba, tmp_path: Path) -> None:
    save_checkpoint(small, tmp_path / "a.safetensors")
    save_checkpoint(small, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_quantizers_are_not_saved(small: VisionMamba, small_tensors: Tensors, tmp_path: Path) -> None:
    for _, site in named_sites(small):
        site.quantizer = nn.BatchNorm1d(3)
    save_checkpoint(small, tmp_path / "model.safetensors")
    assert same(load_file(tmp_path / "model.safetensors"), small_tensors)


def test_saving_says_when_it_cannot(small: VisionMamba, tmp_path: Path) -> None:
    with pytest.raises(VisqError, match=r"must end in \.safetensors"):
        save_checkpoint(small, tmp_path / "model.pth")
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(VisqError, match="cannot write checkpoint"):
        save_checkpoint(small, tmp_path / "taken.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(VisqError, match="cannot write checkpoint"):
        save_checkpoint(small, tmp_path / "file" / "model.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.safetensors"]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_official_files(small_tensors: Tensors, tmp_path: Path, legacy: bool, prefix: str) -> None:
    args = argparse.Namespace(
        model="vim_x", input_size=12, output_dir="out", lr=1e-3, distributed=None, betas=[0.9, 0.99]
    )
    content = {"model": {prefix + name: tensor for name, tensor in small_tensors.items()}, "args": args, "epoch": 299}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(tmp_path / "a.pth")
    assert same(read.tensors, small_tensors)
    assert read.notes == {"image_size": 12, "model": "vim_x"}


def test_plain_state_dict_and_averaged_weights(small_tensors: Tensors, tmp_path: Path) -> None:
    torch.save(small_tensors, tmp_path / "plain.pth")
    assert same(read_checkpoint(str(tmp_path / "plain.pth")).tensors, small_tensors)
    average = {name: tensor / 2 for name, tensor in small_tensors.items()}
    torch.save({"model": small_tensors, "model_ema": average, "args": {"img_size": 12}}, tmp_path / "both.pth")
    assert same(read_checkpoint(tmp_path / "both.pth").tensors, small_tensors)
    assert same(read_checkpoint(tmp_path / "both.pth", ema=True).tensors, average)
    with pytest.raises(VisqError, match=r"plain\.pth has no averaged weights"):
        read_checkpoint(tmp_path / "plain.pth", ema=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_precisions_become_float32(
    small_tensors: Tensors, tmp_path: Path, dtype: torch.dtype, suffix: str
) -> None:
    rounded = {name: tensor.to(dtype) for name, tensor in small_tensors.items()}
    path = tmp_path / f"model{suffix}"
    save_file(rounded, path) if suffix == ".safetensors" else torch.save({"model": rounded}, path)
    assert same(read_checkpoint(path).tensors, {name: tensor.float() for name, tensor in rounded.items()})


def test_integer_weights_are_refused(small_tensors: Tensors, tmp_path: Path) -> None:
    save_file({**small_tensors, "head.bias": torch.zeros(5, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(VisqError, match=r"head.bias is torch.int8"):
        read_checkpoint(tmp_path / "model.safetensors")


class Explosive:
    """Unpickling it creates a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.witness),))


def in_model(bomb: Explosive) -> dict:
    return {"model": {"head.weight": bomb}}


def in_args(bomb: Explosive) -> dict:
    return {"model": {}, "args": argparse.Namespace(model=bomb)}


@pytest.mark.parametrize("build", [in_model, in_args])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, build: Callable, legacy: bool) -> None:
    witness = tmp_path / "executed"
    torch.save(build(Explosive(witness)), tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(VisqError, match=r"evil\.pth holds a posix\.mkdir, .* save only the weights"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not witness.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_in_a_bare_pickle_is_executed(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "executed"
    for name in ("evil.pth", "evil.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Explosive(witness), protocol))
        with pytest.raises(VisqError, match=name):
            read_checkpoint(tmp_path / name)
    assert not witness.exists()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(VisqError, match=r"checkpoint .*nothing\.pth does not exist"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(VisqError, match="is a folder; give a checkpoint file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".legacy.pth"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files(small_tensors: Tensors, tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(small_tensors, path)
    else:
        torch.save({"model": small_tensors}, path, _use_new_zipfile_serialization=suffix == ".pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(VisqError, match=rf"model{suffix}.*(damaged|not a).*download it again or give another file"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epoch,loss\n1,2.5\n", "is not a checkpoint: neither safetensors nor a torch file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a checkpoint: neither safetensors nor a torch file"),
        (b"PK\x03\x04" + bytes(100), "damaged or not a checkpoint"),
        (b"\x80\x02 nonsense", "damaged or not a checkpoint"),
        ((2**60).to_bytes(8, "little") + b"{}", "damaged or not a safetensors file"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    with pytest.raises(VisqError, match=rf"file\.bin.*{message}"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a dict"),
        ({"epoch": 1, "optimizer": {}}, r"the state of an optimizer, not of a network \(entries: epoch, optimizer\)"),
        ({}, "entries: none"),
        ({"model": {}}, "holds no tensors"),
        ({"model": {"head.weight": 3}}, "entry 'head.weight' is a int, not a tensor"),
        ({"model": {3: torch.zeros(1)}}, "the name 3 is no text"),
    ],
)
def test_torch_files_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(VisqError, match=message):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("notes", ["no json", "[1]", json.dumps({"stride": 0}), json.dumps({"classes": "abc"})])
def test_damaged_notes(small_tensors: Tensors, tmp_path: Path, notes: str) -> None:
    save_file(small_tensors, tmp_path / "model.safetensors", metadata={"visq": notes})
    with pytest.raises(VisqError, match=r"model\.safetensors: the notes? .*in its header"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_headers_of_other_programs_are_ignored(small_tensors: Tensors, tmp_path: Path) -> None:
    save_file(small_tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert read_checkpoint(tmp_path / "model.safetensors").notes == {}


def test_an_address_is_not_downloaded() -> None:
    with pytest.raises(VisqError, match="visq downloads nothing: fetch the checkpoint first"):
        load_model("vim", "https://example.com/vim.pth")
