"""Tests that a mutated checkpoint loads or is refused in one line, whatever was changed in it."""

from __future__ import annotations

import argparse
import random
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from visq.errors import VisqError
from visq.models import VisionMamba, load_model, save_checkpoint

Tensors = dict[str, Tensor]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flips, replaces, deletes, inserts or copies a few bytes."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        i, j, count = rng.randrange(len(result)), rng.randrange(len(result)), rng.randrange(1, 9)
        kind = rng.randrange(5)
        if kind == 0:
            result[i] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[i] = rng.randrange(256)
        elif kind == 2:
            del result[i : i + count]
        elif kind == 3:
            result[i:i] = rng.randbytes(count)
        else:
            result[i : i + 4 * count] = result[j : j + 4 * count]
    return bytes(result)


def mutated_pickle(source: Path, target: Path, rng: random.Random) -> None:
    """Changes the pickle of a zip archive, whose checksums then fit."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, mutated(data, rng) if name.endswith("data.pkl") else data)


def mutated_header(source: Path, target: Path, rng: random.Random) -> None:
    """Changes the header of a safetensors file, whose length then fits."""
    data = source.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = mutated(data[8:end], rng)
    target.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def mutated_beginning(source: Path, target: Path, rng: random.Random) -> None:
    """Changes the first 9,000 bytes of a file: the pickles of an old one."""
    data = source.read_bytes()
    target.write_bytes(mutated(data[:9000], rng) + data[9000:])


def mutated_anywhere(source: Path, target: Path, rng: random.Random) -> None:
    """Changes a file anywhere."""
    target.write_bytes(mutated(source.read_bytes(), rng))


CASES = {
    "pickle": (mutated_pickle, "new.pth"),
    "header": (mutated_header, "ours.safetensors"),
    "legacy": (mutated_beginning, "old.pth"),
    "zip": (mutated_anywhere, "new.pth"),
}


@pytest.mark.parametrize("case", CASES)
def test_mutated_files(small: VisionMamba, small_tensors: Tensors, tmp_path: Path, case: str) -> None:
    content = {"model": small_tensors, "args": argparse.Namespace(input_size=12, output_dir=Path("runs"))}
    torch.save(content, tmp_path / "new.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_checkpoint(small, tmp_path / "ours.safetensors")
    mutate, source = CASES[case]
    target = tmp_path / f"mutated{Path(source).suffix}"
    refused = 0
    for seed in range(60):
        rng = random.Random(seed)
        mutate(tmp_path / source, target, rng)
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_model(rng.choice([None, "vim"]), target)
        except VisqError as error:
            refused += 1
            assert str(target) in str(error) and "\n" not in str(error) and len(str(error)) < 1500, (seed, error)
        assert time.perf_counter() - start < 20, seed
    assert refused > 5
