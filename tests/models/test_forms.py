"""Tests the forms in which people have weights (entries, prefixes, options), and files of other kinds."""

from __future__ import annotations

import argparse
import gzip
import pickle
import sys
import tarfile
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from visq.errors import VisqError
from visq.models import load_model, read_checkpoint
from visq.models.checkpoint import official_parameters
from visq.models.entries import kind_of
from visq.models.inert_pickle import Record
from visq.models.names import without_common_prefix

Tensors = dict[str, Tensor]


def saved(content: Any, tmp_path: Path, name: str = "model.pth") -> Path:
    path = tmp_path / name
    torch.save(content, path)
    return path


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def yacs(values: dict) -> Any:
    """Returns a yacs configuration: a subclass of dict whose module is gone when the file is read."""
    module = sys.modules.setdefault("yacs.config", types.ModuleType("yacs.config"))
    sys.modules.setdefault("yacs", types.ModuleType("yacs"))
    if not hasattr(module, "CfgNode"):
        module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})  # type: ignore[attr-defined]
    node = module.CfgNode({key: yacs(value) if isinstance(value, dict) else value for key, value in values.items()})
    node.__dict__["__immutable__"] = True
    return node


@pytest.fixture(autouse=True)
def without_yacs() -> Any:
    yield
    sys.modules.pop("yacs.config", None)
    sys.modules.pop("yacs", None)


@pytest.mark.parametrize(
    "entry", ["model", "state_dict", "model_state_dict", "module", "net", "network", "weights", "anything"]
)
def test_weights_are_found_under_their_entry(small_tensors: Tensors, tmp_path: Path, entry: str) -> None:
    content = {"epoch": 3, entry: OrderedDict(small_tensors), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    read = read_checkpoint(saved(content, tmp_path))
    assert same(read.tensors, small_tensors)
    assert read.remarks == (() if entry == "model" else (f"its weights are those under `{entry}`",))


def test_weights_in_two_entries(small_tensors: Tensors, tmp_path: Path) -> None:
    path = saved({"model": {"state_dict": {"module": small_tensors}, "epoch": 3}}, tmp_path)
    read = read_checkpoint(path)
    assert same(read.tensors, small_tensors) and "`model.state_dict.module`" in read.remarks[0]


@pytest.mark.parametrize("entry", ["model_ema", "ema", "state_dict_ema", "ema_state_dict"])
def test_averaged_weights_are_found(small_tensors: Tensors, tmp_path: Path, entry: str) -> None:
    average = {name: tensor / 2 for name, tensor in small_tensors.items()}
    path = saved({"state_dict": small_tensors, entry: {"module." + n: t for n, t in average.items()}}, tmp_path)
    assert same(read_checkpoint(path).tensors, small_tensors)
    assert same(read_checkpoint(path, ema=True).tensors, average)
    only = read_checkpoint(saved({entry: average, "epoch": 1}, tmp_path))
    assert same(only.tensors, average) and f"`{entry}`" in only.remarks[0]


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "module.", "net.encoder.", "module.model.", "a.b.c."])
def test_common_prefixes_are_removed_and_said(small_tensors: Tensors, tmp_path: Path, prefix: str) -> None:
    path = saved({"state_dict": {prefix + name: tensor for name, tensor in small_tensors.items()}}, tmp_path)
    read = read_checkpoint(path)
    assert same(read.tensors, small_tensors) and read.prefix == prefix
    assert f"the prefix `{prefix}` of all its names was removed" in load_model(None, path).card.notes


def test_tensors_beside_the_network_s_are_left_out_and_said(small_tensors: Tensors, tmp_path: Path) -> None:
    others = {"criterion.weight": torch.ones(3), "metric.total": torch.ones(1)}
    content = {"state_dict": {**{"model." + name: tensor for name, tensor in small_tensors.items()}, **others}}
    model = load_model("vim", saved(content, tmp_path))
    assert torch.equal(model.head.weight, small_tensors["head.weight"])
    assert any("under `model.`; left out: criterion.weight and 1 more" in note for note in model.card.notes)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["layers.0.a", "layers.1.b"], ""),
        (["head.weight", "head.bias"], ""),
        (["module.head.weight", "module.head.bias"], "module."),
        (["x.head.weight", "x.head.bias"], "x."),
        (["module.weight"], "module."),
        (["a", "a.b"], ""),
        ([], ""),
    ],
)
def test_what_is_a_prefix(names: list[str], expected: str) -> None:
    shorter, prefix = without_common_prefix(names)
    assert prefix == expected and shorter == [name.removeprefix(prefix) for name in names]


def test_options_of_every_kind_are_read(small_tensors: Tensors, tmp_path: Path) -> None:
    def notes(**content: object) -> dict:
        return read_checkpoint(saved({"model": small_tensors, **content}, tmp_path)).notes

    assert notes(args=argparse.Namespace(input_size=10, output_dir=Path("runs")))["image_size"] == 10
    assert notes(args=argparse.Namespace(input_size=np.int64(10), best=np.float32(1.5)))["image_size"] == 10
    assert notes(args={"img_size": [3, 10, 10]})["image_size"] == 10
    assert notes(config=yacs({"DATA": {"IMG_SIZE": 10, "BATCH": 3}, "AUG": {}}))["image_size"] == 10
    assert notes(hyper_parameters={"net": {"image_size": 10}})["image_size"] == 10
    assert notes(args=argparse.Namespace(input_size=-3, model=None)) == {}
    assert notes(args=argparse.Namespace(img_size=(10, 12))) == {}
    found = notes(
        args=argparse.Namespace(mean=(0.5, 0.4, 0.3), std=[0.2, 0.2, 0.2], crop_pct=0.9, interpolation="bilinear")
    )
    assert found["transform"] == {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        "crop": 0.9,
        "interpolation": "bilinear",
    }
    assert notes(class_to_idx={"b": 1, "a": 0})["classes"] == ["a", "b"]
    assert notes(classes=["x", "y"])["classes"] == ["x", "y"]


def test_options_are_honoured(small_tensors: Tensors, tmp_path: Path) -> None:
    args = argparse.Namespace(
        input_size=12, mean=[0.5] * 3, std=[0.25] * 3, eval_crop_ratio=0.75, interpolation="bilinear"
    )
    content = {"model": small_tensors, "args": args, "class_to_idx": {name: i for i, name in enumerate("vwxyz")}}
    card = load_model(None, saved(content, tmp_path)).card
    assert (card.preprocess.image_size, card.preprocess.resize, card.preprocess.interpolation) == (12, 16, "bilinear")
    assert (card.preprocess.mean, card.preprocess.std, card.classes) == ((0.5,) * 3, (0.25,) * 3, tuple("vwxyz"))


def test_counters_are_left_out_and_said(small_tensors: Tensors, tmp_path: Path) -> None:
    extra = {"bn.num_batches_tracked": torch.tensor(7), "table": torch.zeros(2, 2, dtype=torch.int32)}
    path = saved({"model": {**small_tensors, **extra}}, tmp_path)
    model = load_model(None, path)
    assert "left out: bn.num_batches_tracked, table (integers, no weights)" in model.card.notes
    path = saved({"model": {**small_tensors, "head.bias": torch.zeros(5, dtype=torch.int64)}}, tmp_path)
    with pytest.raises(VisqError, match=r"model\.pth: head\.bias is torch\.int64; weights must be floats"):
        load_model(None, path)


def test_a_plain_dict_with_other_entries(small_tensors: Tensors, tmp_path: Path) -> None:
    read = read_checkpoint(saved({**small_tensors, "epoch": 3, "note": "x"}, tmp_path))
    assert same(read.tensors, small_tensors) and "it has epoch, note, which are not used" in read.remarks[0]


# Files of other kinds.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty \(0 bytes\), not a checkpoint; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a git-lfs pointer .*`git lfs pull`"),
        (b"\n<!DOCTYPE html><html><head>", "a web page; download the file itself"),
        (gzip.compress(b"x", mtime=0), "compressed with gzip; unpack it first"),
        (b'{"a": 1}', "a JSON file"),
        (b"GGUF\x03\x00", "a GGUF file"),
        (b"\x89HDF\r\n\x1a\n", r"an HDF5 file \(Keras\)"),
        (b"just a text\nof two lines\n", "a text file"),
        (b"\x00\x01\x02\x03", "neither safetensors nor a torch file; download it again"),
    ],
)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_files_of_other_kinds(tmp_path: Path, content: bytes, message: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    if name.endswith("safetensors") and content[:1] == b"\x00":
        message = "damaged or not a safetensors file"
    with pytest.raises(VisqError, match=rf"{name} is (.* )?{message}") as caught:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_tar_and_an_index(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "model.pth", "w") as archive:
        archive.add(__file__, "x.py")
    with pytest.raises(VisqError, match="a tar archive; unpack it first"):
        read_checkpoint(tmp_path / "model.pth")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(VisqError, match="the index of a checkpoint in several files; merge them"):
        read_checkpoint(tmp_path / "model.safetensors.index.json")


def test_folders_say_what_is_in_them(small_tensors: Tensors, tmp_path: Path) -> None:
    saved(small_tensors, tmp_path, "best.pth")
    with pytest.raises(VisqError, match=r"is a folder; give one of its files: best\.pth"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 1}, "state of an optimizer, not of a network"),
        ({"state": {}, "param_groups": [{}]}, "state of an optimizer, not of a network"),
        ({"generator": {"a.b": torch.ones(1)}, "discriminator": {"a.b": torch.ones(1)}}, "weights of several networks"),
        (torch.ones(3), "it holds a tensor, not a dict of weights"),
        ({"model": {"a.b": torch.ones(2).to_sparse()}}, "a.b"),
        ({"model": {"a.b": np.ones(3)}}, "entry 'a.b' is a NumPy array"),
        ({"model": {"a.b": torch.zeros(2, dtype=torch.complex64)}}, "a.b is torch.complex64.*floating-point"),
    ],
)
def test_torch_files_without_weights(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(VisqError, match=message):
        read_checkpoint(saved(content, tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["backbone.embedding.weight", "backbone.layers.0.mixer.A_log", "lm_head.weight"], "a Mamba language model"),
        (["layer1.0.conv1.weight", "layer4.0.conv1.weight", "fc.weight"], "a ResNet"),
        (["blocks.0.attn.qkv.weight", "pos_embed", "cls_token"], "a ViT or DeiT"),
        (["layers.0.blocks.0.attn.relative_position_bias_table"], "a Swin Transformer"),
    ],
)
@pytest.mark.parametrize("model", [None, "vim", "vim_tiny"])
def test_well_known_networks_are_named(tmp_path: Path, names: list[str], message: str, model: str | None) -> None:
    save_file({name: torch.zeros(3, 3) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(VisqError, match=rf"model\.safetensors: .*{message}, and visq quantizes"):
        load_model(model, tmp_path / "model.safetensors")


def test_the_family_to_ask_for_is_named(small_tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(VisqError, match=r"model\.pth is a Vim, not a VMamba checkpoint; say --model vim"):
        load_model("vmamba", saved({"model": small_tensors}, tmp_path))


def test_one_of_several_files(small_tensors: Tensors, tmp_path: Path) -> None:
    part = {name: tensor for name, tensor in small_tensors.items() if name.startswith("layers.0")}
    path = tmp_path / "model-00001-of-00002.safetensors"
    save_file(part, path)
    for name in (None, "vim", "vim_tiny"):
        with pytest.raises(VisqError, match=r"it is file 1 of 2 of one checkpoint; merge them into one"):
            load_model(name, path)


def test_a_backbone_without_head(small_tensors: Tensors, tmp_path: Path) -> None:
    backbone = {f"backbone.{name}": tensor for name, tensor in small_tensors.items() if "head" not in name}
    path = saved({"state_dict": {**backbone, "decode_head.conv.weight": torch.ones(2)}}, tmp_path)
    with pytest.raises(VisqError, match=r"model\.pth: a Vim without a head \(head\.weight\); give the classifier's"):
        load_model("vim", path)


def test_a_quantized_tensor_is_named(tmp_path: Path) -> None:
    record = "torch._utils._rebuild_qtensor"
    weight = types.SimpleNamespace()
    path = saved({"model": {"a.weight": torch.ones(2), "head.weight": weight}}, tmp_path)
    with pytest.raises(VisqError, match=r"entry 'head.weight' is a types\.SimpleNamespace, not a tensor; only dense"):
        read_checkpoint(path)
    assert kind_of(Record(record)) == "quantized tensor"


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"mean": [0.5]}, r"--mean has 1 values, the model takes images of 3 channels"),
        ({"resize": 10}, r"--resize 10 is smaller than the crop of 12 pixels; give 12 or more"),
    ],
)
def test_options_that_do_not_fit_the_images(small_file: Path, preprocess: dict, message: str) -> None:
    with pytest.raises(VisqError, match=rf"small\.safetensors: {message}"):
        load_model(None, small_file, preprocess=preprocess)


def test_the_preprocessing_of_a_registered_model_is_taken_and_said(tmp_path: Path) -> None:
    model = load_model("vim_nano_fmnist")
    card = load_model("vim", saved({"model": official_parameters(model)}, tmp_path)).card
    assert card.preprocess == model.card.preprocess
    assert "mean, std and resize are those of vim_nano_fmnist" in card.notes


def test_names_cannot_move_the_terminal_s_cursor(tmp_path: Path) -> None:
    name = "a\x1b[2Jb\n" + "x" * 500
    with pytest.raises(VisqError) as caught:
        read_checkpoint(saved({"model": {name: 3, "v": torch.ones(1)}}, tmp_path))
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(VisqError) as caught:
        load_model("vim", saved({"model": {name: torch.ones(1), "v": torch.ones(1)}}, tmp_path))
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_a_pickled_dict_of_tensors(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"a": torch.ones(2)}))
    with pytest.raises(VisqError, match="written by pickle, not by torch"):
        read_checkpoint(tmp_path / "model.pth")
