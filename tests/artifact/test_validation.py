"""Tests that simulation and engine refuse the same artifacts with the same words."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visq
from tests.runtime.mutants import Artifact
from visq import artifact
from visq.artifact.program_checks import MAX_IMAGE_BYTES, image_bytes
from visq.artifact.schema import MAX_DEPTH, ArtifactConfig
from visq.errors import VisqError
from visq.integer.program import Program
from visq.models import create_model
from visq.runtime import load_engine

HEAD = "head.weight"
DELTA = "layers.0.mixer.scan.delta"
IN = "layers.0.mixer.in_proj.in"


def quantized(recipe: str, folder: Path) -> Any:
    """Returns a small Vim that was saved in `folder` and loaded again."""
    torch.manual_seed(0)
    geometry = {"patch_size": 14, "stride": 14, "embed_dim": 16, "depth": 1, "d_state": 3}
    model = create_model("vim", image_size=28, channels=1, num_classes=10, **geometry)
    model.card = visq.load_model("vim_nano_fmnist").card
    visq.quantize(model, recipe, "fashion-mnist", samples=2, out=folder)
    return artifact.load(folder)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("validation") / "a"
    quantized("minmax-w8a8", folder)
    return Artifact.read(folder)


Change = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]


def written(original: Artifact, folder: Path, change: Change) -> Path:
    """Writes a changed copy with correct hashes, and returns its folder."""
    found = Artifact(copy.deepcopy(original.config), {name: x.copy() for name, x in original.tensors.items()})
    change(found.config, found.tensors)
    found.write(folder, random.Random(1))
    return folder


def refused(folder: Path, words: str) -> None:
    """Asserts that simulation and engine refuse a folder in the same single line, which matches `words`."""
    messages = []
    for door in (artifact.load, load_engine):
        with pytest.raises(VisqError, match=words) as caught:
            door(folder)
        messages.append(str(caught.value))
        assert "\n" not in messages[-1]
    assert messages[0] == messages[1]


def operation(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(op for op in config["program"]["operations"] if op["name"] == name)


def steps(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for operation in config["program"]["operations"] for step in operation["body"]]


def site(config: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = config["sites"][name]
    return found


def spec(config: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = site(config, name)["quantizer"]["spec"]
    return found


def many_tensors(config: dict[str, Any], rows: int = 1 << 20) -> None:
    """Adds forty tensors of `rows` rows that are all alive at once."""
    program = config["program"]
    program["tensors"] |= {f"x{i}": {"rows": rows, "width": 784} for i in range(40)}
    program["tensors"]["x"] = {"rows": 1, "width": 784}
    source = {"kind": "patches", "patch": 28, "stride": 1}
    store = {"op": "store", "src": 0, "tensor": "x"}
    operations = program["operations"]
    operations.append({"name": "x", "rows": 1, "width": 784, "source": source, "body": [store]})
    body = [{"op": "load", "dst": 0, "tensor": "x", "row": 0}]
    body += [{"op": "store", "src": 0, "tensor": f"x{i}"} for i in range(40)]
    operations.append({"name": "y", "rows": rows, "width": 0, "source": {"kind": "rows"}, "body": body})


#: Changes with correct hashes: (name, change, words of the error).
CHANGES: list[tuple[str, Change, str]] = [
    # Codes that do not fit their spec.
    ("offset", lambda c, t: site(c, HEAD)["codes"].update(offset=3), "head.weight.codes: bits or offset"),
    ("code bits", lambda c, t: site(c, HEAD)["codes"].update(bits=4), "head.weight.codes: bits or offset"),
    ("4-bit spec", lambda c, t: spec(c, HEAD).update(bits=4), "head.weight.codes: bits or offset"),
    ("code shape", lambda c, t: site(c, HEAD)["codes"].update(shape=[11, 16]), r"codes\.shape|scales are for"),
    ("rank", lambda c, t: site(c, HEAD)["codes"].update(shape=[10, 16, 1]), "head.weight"),
    ("no codes", lambda c, t: t.pop(f"{HEAD}.codes"), "head.weight: weights have a tensor codes"),
    ("null codes", lambda c, t: site(c, HEAD).update(codes=None), "head.weight: weights have codes"),
    ("other codes", lambda c, t: t.update({f"{HEAD}.codes": t[f"{HEAD}.codes"].astype(np.int16)}), "codes is I16"),
    ("short codes", lambda c, t: t.update({f"{HEAD}.codes": t[f"{HEAD}.codes"][:-1]}), "codes: 159 bytes for 160"),
    # Quantizers that do not fit their tensors.
    ("no scale", lambda c, t: t.pop(f"{IN}.scale"), f"{IN}: tensor scale is missing"),
    ("scale", lambda c, t: t.update({f"{IN}.scale": np.zeros(1, np.float32)}), f"{IN}: scale must be positive"),
    ("tiny scale", lambda c, t: t.update({f"{IN}.scale": np.float32([1e-45])}), f"{IN}: scale is too small"),
    ("large scale", lambda c, t: t.update({f"{IN}.scale": np.float32([3e38])}), f"{IN}: its scale is so large that"),
    ("group", lambda c, t: t.update({f"{IN}.group": np.int16([-1] * 5)}), f"{IN}: group must index"),
    ("table", lambda c, t: t.update({f"{IN}.table": np.float32([2, 1])}), f"{IN}: table must hold"),
    ("table of codes", lambda c, t: t.update({f"{HEAD}.table": np.float32([0, 1])}), "head.weight.codes: bits or off"),
    ("zero point", lambda c, t: t.update({f"{IN}.zero_point": np.int16([20000])}), f"{IN}: zero_point must stay"),
    ("divisors", lambda c, t: t.update({f"{IN}.smooth": np.ones(3, np.float32)}), f"{IN}: smooth has 3 elements for"),
    ("strange part", lambda c, t: t.update({f"{IN}.step": np.ones(1, np.float32)}), f"{IN}: .*has no tensor step"),
    ("axis", lambda c, t: site(c, IN)["quantizer"].update(axis=0), f"{IN}.quantizer.axis is 0"),
    ("no axis", lambda c, t: site(c, IN)["quantizer"].pop("axis"), f"{IN}: quantizer.*axis belongs"),
    ("axis of a list", lambda c, t: site(c, IN)["quantizer"].update(axis=[]), f"{IN}: quantizer.axis"),
    ("kind", lambda c, t: site(c, IN)["quantizer"].update(kind="state"), f"{IN}: quantizer.*read_quantized"),
    ("spec", lambda c, t: site(c, IN)["quantizer"].update(spec=None), f"{IN}: quantizer.spec"),
    ("a site's kind", lambda c, t: site(c, IN).update(kind="inner"), f"{IN}.kind is inner"),
    # Other keys of the config that do not fit the program.
    ("classes", lambda c, t: c.update(classes=["a", "b"]), "classes has 2 names for 10 outputs"),
    ("outputs", lambda c, t: c["architecture"]["geometry"].update(num_classes=11), "num_classes is 11 for 10 outputs"),
    ("geometry", lambda c, t: c["architecture"]["geometry"].update(depth=2), "geometry.depth is 2, the program's is 1"),
    ("stride", lambda c, t: c["architecture"]["geometry"].update(stride=13), "geometry.stride is 13"),
    ("rate", lambda c, t: c["architecture"]["geometry"].update(drop_path=""), "geometry.drop_path is '', no rate in"),
    ("size", lambda c, t: c["preprocess"].update(image_size=20000, resize=20000), "resize|image_size"),
    ("all sizes", lambda c, t: c["architecture"]["geometry"].update(image_size=20000), "image_size"),
    ("recipe", lambda c, t: c["recipe"]["scope"].update(transforms=None), "recipe.scope.transforms"),
    ("null rule", lambda c, t: c["recipe"]["scope"].update(sites=[None]), "recipe.scope.sites"),
    ("null match", lambda c, t: c["recipe"]["scope"]["sites"][0].update(match=[None]), "recipe.scope.sites.0.match"),
    ("recipe's bits", lambda c, t: c["recipe"]["bits"].update(activation=6), "bits, by recipe"),
    ("coverage", lambda c, t: c["coverage"][0].update(quantized=9, targeted=9, sites=9), "coverage"),
    # A program that does not fit sites and tensors.
    ("scan", lambda c, t: operation(c, "layers.0.mixer.scan")["source"].update(reverse=True), "runs backward"),
    ("scan back", lambda c, t: operation(c, "layers.0.mixer.scan_b")["source"].update(reverse=False), "runs forward"),
    ("conv", lambda c, t: operation(c, "layers.0.mixer.conv1d")["source"].update(reverse=True), "runs backward"),
    ("weight", lambda c, t: operation(c, "head")["source"].update(weight="layers.0.mixer.out_proj.weight"), "head"),
    ("no site", lambda c, t: operation(c, "layers.0.mixer.scan")["source"].update(h=None), "scan.h is used by no"),
    ("no parameter", lambda c, t: t.pop("cls_token"), "tensor cls_token is missing"),
    ("extra", lambda c, t: t.update(extra=np.ones(3, np.float32)), "unexpected tensors: extra"),
    ("A_log", lambda c, t: t["layers.0.mixer.a_log.scale"].fill(9), "a_log: its exponential leaves float32"),
    ("shape", lambda c, t: t.update({"norm_f.weight": t["norm_f.weight"][None]}), r"norm_f.weight is \[1, 16\]"),
    ("memory", lambda c, t: many_tensors(c), "program: an image takes [0-9,]+ bytes at once, at most 1,073,741,824"),
    # Values that JSON or the schema must refuse.
    ("deep", lambda c, t: spec(c, IN).update(estimator={"name": "x", "p": nested(MAX_DEPTH)}), "nested more than 64"),
    ("deeper", lambda c, t: spec(c, IN).update(estimator={"name": "x", "p": nested(900)}), "nested more than 64|valid"),
    ("float", lambda c, t: c["recipe"].update(title=float("inf")), "not valid JSON .*Infinity"),
    ("nan", lambda c, t: c["recipe"].update(title=float("nan")), "not valid JSON .*NaN"),
    ("dtype", lambda c, t: t.update(extra=np.ones(3)), "tensors.extra: F64 is no dtype"),
    ("huge", lambda c, t: site(c, HEAD)["codes"].update(shape=[2**70, 16]), "head.weight"),
    ("eps", lambda c, t: [s.update(eps=1e300) for s in steps(c) if "eps" in s], "eps: Input should be less than"),
]  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(("change", "words"), [(c[1], c[2]) for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_refused_by_both(original: Artifact, tmp_path: Path, change: Change, words: str) -> None:
    refused(written(original, tmp_path / "b", change), words)


def test_unchanged_is_accepted_by_both(original: Artifact, tmp_path: Path) -> None:
    folder = written(original, tmp_path / "b", lambda c, t: None)
    images = np.random.default_rng(0).normal(0, 1, (2, 1, 28, 28)).astype(np.float32)
    with torch.no_grad():
        simulated = artifact.load(folder)(torch.from_numpy(images)).numpy()
    assert np.array_equal(load_engine(folder)(images), simulated)


@pytest.mark.parametrize("text", ["1e999", "9" * 5000, "-1e400"])
def test_numbers_beyond_any_type(original: Artifact, tmp_path: Path, text: str) -> None:
    folder = written(original, tmp_path / "b", lambda c, t: None)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"schema_version": 1', f'"schema_version": {text}'))
    refused(folder, "not valid JSON|schema_version")


def test_another_program_is_the_networks_business(original: Artifact, tmp_path: Path) -> None:
    """A program may fit its sites but not the network. Only the simulation has the network, so it refuses."""

    def change(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        next(step for step in steps(config) if step["op"] == "mul_scalar")["value"] = 0.25

    folder = written(original, tmp_path / "b", change)
    with pytest.raises(VisqError, match="program is not that of the network and its sites"):
        artifact.load(folder)


def test_memory_of_an_image(original: Artifact) -> None:
    """The bytes lie between the largest single tensor and a loose bound from all tensors."""
    program = ArtifactConfig.model_validate(original.config).program
    assert program is not None
    sizes = [decl.rows * decl.width * (4 if decl.site is None else 1) for decl in program.tensors.values()]
    assert max(sizes) <= image_bytes(program) < 64 * sum(sizes) + 4 * 28 * 28
    config = copy.deepcopy(original.config)
    many_tensors(config, rows=1000)
    assert 40 * 1000 * 784 * 4 < image_bytes(Program.model_validate(config["program"])) < MAX_IMAGE_BYTES


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_ordinary_modes(original: Artifact, tmp_path: Path, mask: int) -> None:
    model = artifact.load(written(original, tmp_path / "a", lambda c, t: None))
    before = os.umask(mask)
    try:
        artifact.save(model, tmp_path / "b")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "b", *(tmp_path / "b").iterdir())}
    assert modes == {"b": 0o777 & ~mask, "config.json": 0o666 & ~mask, "model.safetensors": 0o666 & ~mask}


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    model = quantized("minmax-w8a8-linear", tmp_path / "a")
    model.layers[0].mixer.A_b_log.data[0, 0] = 200.0
    with pytest.raises(VisqError, match="A_b_log: its exponential leaves float32"):
        artifact.save(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()
