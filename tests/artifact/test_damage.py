"""Tests that loading finds every damage and every edit, and names the file and the key."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from visq import artifact
from visq.artifact.schema import self_hash
from visq.errors import VisqError
from visq.models import VisionMamba

Build = Callable[..., VisionMamba]


@pytest.fixture
def folder(quantized: Build, tmp_path: Path) -> Path:
    artifact.save(quantized(), tmp_path / "a")
    return tmp_path / "a"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], reseal: bool = True) -> None:
    """Changes the config by hand; with `reseal`, also recomputes its hash."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    if reseal:
        config["self_hash"] = self_hash(config)
    path.write_text(json.dumps(config))


def replace_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], table: bool = True) -> None:
    """Changes the tensors and updates the hashes; with `table`, also the config's tensor table."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    data = save(tensors)
    (folder / "model.safetensors").write_bytes(data)
    names = {torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
    names |= {torch.uint8: "U8", torch.int16: "I16", torch.int64: "I64"}

    def update(config: dict[str, Any]) -> None:
        config["tensor_file"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        if table:
            config["tensors"] = {name: [names[tensor.dtype], list(tensor.shape)] for name, tensor in tensors.items()}

    edit(folder, update)


def refused(folder: Path, match: str) -> None:
    for check in (artifact.verify, artifact.load):
        with pytest.raises(VisqError, match=match) as caught:
            check(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors is missing")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


def test_damaged_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    for damaged, match in [
        (text[:-40], "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "schema_version is missing"),
    ]:
        (folder / "config.json").write_text(damaged)
        refused(folder, match)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, "not valid JSON")


def test_edited_config(folder: Path) -> None:
    edit(folder, lambda c: c["recipe"]["bits"].update(weight=4), reseal=False)
    refused(folder, "self_hash does not match")


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda c: c.update(schema_version=2), "schema_version 2"),
        (lambda c: c.update(extra=1), "extra is no key that is known here"),
        (lambda c: c.pop("preprocess"), "preprocess is missing"),
        (lambda c: c["architecture"].update(family="vgg"), "family 'vgg'"),
        (lambda c: c["architecture"]["geometry"].pop("depth"), "missing or unknown depth"),
        (lambda c: c["architecture"]["geometry"].update(embed_dim=10**12), "embed_dim is 10"),
        (lambda c: c["architecture"]["geometry"].update(depth=100_000), "depth is 100000"),
        (lambda c: c["architecture"]["geometry"].update(embed_dim=10**6), "embed_dim is 1000000"),
        (lambda c: c["architecture"]["geometry"].update(image_size=20), "image_size"),
        (lambda c: c["preprocess"].update(std=[-1.0]), "std must be positive"),
        (lambda c: c.update(classes=["one"]), "1 names for 10"),
        (lambda c: c["recipe"]["scope"]["sites"][0].update(match=["nothing"]), "matches no site"),
        (lambda c: c["recipe"]["scope"]["sites"][0].update(bits=9), "8"),
        (lambda c: c["sites"].pop("layers.0.mixer.gate.out"), "layers.0.mixer.gate.out"),
        (lambda c: c["sites"].update({"layers.9.mixer.gate.out": c["sites"]["layers.0.mixer.gate.out"]}), "layers.9"),
        (lambda c: c["sites"]["layers.0.mixer.gate.out"].update(kind="inner"), "gate.out.kind is inner"),
        (lambda c: c["sites"]["layers.0.mixer.gate.out"]["quantizer"].update(kind="pickle"), "gate.out: "),
        (lambda c: c["sites"]["layers.0.mixer.gate.out"]["quantizer"]["spec"].update(bits=40), "gate.out: "),
        (lambda c: c["sites"]["head.weight"]["codes"].update(shape=[10**9, 10**9]), "codes.shape"),
        (lambda c: c["sites"]["head.weight"]["codes"].update(offset=3), "bits or offset"),
        (lambda c: c["sites"]["head.weight"]["codes"].update(parameter="cls_token"), "codes.parameter is cls_token"),
        (lambda c: c["shared"].update({"cls_token": "pos_embed"}), "shared.cls_token"),
        (lambda c: c["shared"].update({"other": "nowhere"}), "nowhere must be stored"),
        (lambda c: c["coverage"][0].update(quantized=99), "coverage"),
    ],
)
def test_contradictions_behind_a_fresh_hash(folder: Path, change: Callable[[dict[str, Any]], Any], match: str) -> None:
    edit(folder, change)
    refused(folder, match)


def test_damaged_tensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    refused(folder, f"has {len(data) - 10} bytes, {len(data)} expected")
    path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    refused(folder, "sha256 does not match")
    garbage = b"\xff" * len(data)
    path.write_bytes(garbage)
    edit(folder, lambda c: c["tensor_file"].update(sha256=hashlib.sha256(garbage).hexdigest()))
    refused(folder, "not a valid safetensors file")


def put(name: str, value: float, index: int = 0) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[index] = value

    return change


GATE = "layers.0.mixer.gate.out"
CODES = "patch_embed.proj.weight.codes"


@pytest.mark.parametrize(
    "change, table, match",
    [
        (lambda t: t.pop("cls_token"), False, "missing cls_token"),
        (lambda t: t.update(extra=torch.zeros(1)), False, "unexpected extra"),
        (lambda t: t.update(cls_token=torch.zeros(3)), False, r"cls_token is F32 \[3\]"),
        (lambda t: t.update(cls_token=torch.zeros(1, 1, 16, dtype=torch.float64)), False, "cls_token is F64"),
        (lambda t: t.pop("cls_token"), True, "cls_token is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), True, "unexpected tensors: .*extra"),
        (lambda t: t.update({"head.weight.bonus": torch.zeros(1)}), True, "head.weight"),
        (lambda t: t.update(cls_token=torch.zeros(3)), True, "cls_token is"),
        (lambda t: t.pop(f"{GATE}.scale"), True, f"{GATE}: "),
        (lambda t: t.update({f"{GATE}.scale": torch.ones(2)}), True, "scale has shape"),
        (lambda t: t.update({f"{GATE}.scale": torch.ones(1, dtype=torch.int64)}), True, "scale: I64"),
        (put(f"{GATE}.scale", 0.0), True, f"{GATE}: .*positive"),
        (put(f"{GATE}.scale", -1.0), True, f"{GATE}: .*positive"),
        (put(f"{GATE}.scale", float("nan")), True, f"{GATE}: .*not finite"),
        (put("layers.0.mixer.scan.h.step", float("inf")), True, "scan.h: "),
        (put("cls_token", float("inf")), True, "cls_token holds NaN or Inf"),
        (put("layers.0.mixer.in_proj.in.group", 200), True, "group must index"),
        (lambda t: t.update({CODES: t[CODES][:-1]}), True, "codes: .* bytes for 256 codes"),
        (lambda t: t.update({CODES: t[CODES].view(2, -1)}), True, "one row of bytes"),
    ],
)
def test_wrong_tensors_behind_fresh_hashes(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], table: bool, match: str
) -> None:
    replace_tensors(folder, change, table)
    refused(folder, match)


def test_codes_out_of_range(folder: Path) -> None:
    # The first weight has 2 bits and a narrow range (codes -1..1), so the stored value 3 is no code.
    replace_tensors(folder, put(CODES, 0b11))
    refused(folder, r"codes: a code outside -1\.\.1")


def test_nothing_is_unpickled(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save({"cls_token": torch.zeros(1)}, path)
    data = path.read_bytes()
    edit(folder, lambda c: c.update(tensor_file={"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}))
    refused(folder, "not a valid safetensors file")


def test_existing_folders(quantized: Build, folder: Path, tmp_path: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(VisqError, match=r"exists.*--overwrite"):
        artifact.save(quantized(seed=1), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    artifact.save(quantized(seed=1), folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before
    artifact.verify(folder)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(VisqError, match="is not an artifact, so it is not overwritten"):
        artifact.save(quantized(), precious, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "precious"]


def test_overwriting_without_an_atomic_exchange(
    quantized: Build, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr("ctypes.CDLL", unavailable)
    artifact.save(quantized(seed=1), folder, overwrite=True)
    artifact.verify(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_full_disk_leaves_nothing(
    quantized: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    model = quantized()
    if overwrite:
        artifact.save(model, tmp_path / "a")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VisqError, match="No space left on device"):
        artifact.save(model, tmp_path / "a", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] * overwrite
    if overwrite:
        artifact.verify(tmp_path / "a")


def test_file_size_limit_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    """Limits the file size for a process, so that the system itself refuses the write."""
    code = f"""
import resource
from visq import artifact
from visq.errors import VisqError
model = artifact.load({str(folder)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    artifact.save(model, {str(tmp_path / "b")!r})
except VisqError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout and "File too large" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_read_only_place(quantized: Build, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VisqError, match="cannot write"):
        artifact.save(quantized(), tmp_path / "file" / "a")
