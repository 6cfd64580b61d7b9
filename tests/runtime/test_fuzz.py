"""Artifacts changed anywhere, with hashes that fit: refused with one clear error, or run without harm."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import visq
from visq.artifact.schema import self_hash
from visq.errors import VisqError
from visq.models import create_model
from visq.runtime import load_engine

GEOMETRY: dict[str, dict[str, Any]] = {
    "vim": {"patch_size": 14, "stride": 14, "embed_dim": 16, "depth": 1, "d_state": 3},
    "vmamba": {"embed_dim": 8, "depths": [1], "mlp_ratio": 1},
}
WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["t0", "t3", "cls_token", "head.weight", "layers.0.mixer.scan.h", "", "uniform", "token"]),
    st.just([]),
    st.just({}),
)


CASES = [("vim", "kscaled-w4a4"), ("vim", "visq-rotated-w4a4-fused"), ("vmamba", "kscaled-w4a4")]


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    name, recipe = request.param
    model = create_model(name, image_size=28, channels=1, num_classes=10, **GEOMETRY[name])
    model.card = visq.load_model("vim_nano_fmnist").card
    folder = tmp_path_factory.mktemp("fuzz") / "a"
    visq.quantize(model, recipe, "fashion-mnist", samples=4, out=folder)
    return folder


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict) and value:
        return [p for key, item in value.items() for p in leaves(item, (*path, key))]
    if isinstance(value, list) and value:
        return [p for i, item in enumerate(value) for p in leaves(item, (*path, i))]
    return [path]


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


def use(folder: Path) -> None:
    """Load and run; anything but a result or a VisqError of one line is a failure."""
    try:
        engine = load_engine(folder, threads=1)
        logits = engine(np.ones((1, engine.program.channels, engine.program.size, engine.program.size), np.float32))
        assert logits.shape[0] == 1
    except VisqError as error:
        assert str(error)


def change_config(artifact: Path, target: Path, path: tuple[Any, ...], value: Any) -> None:
    config = json.loads((artifact / "config.json").read_text())
    put(config, path, value)
    try:
        config["self_hash"] = self_hash(config)
    except ValueError:  # NaN: no hash is right
        config["self_hash"] = "0" * 64
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").write_bytes((artifact / "model.safetensors").read_bytes())


def change_bytes(artifact: Path, target: Path, data: bytes) -> None:
    config = json.loads((artifact / "config.json").read_text())
    config["tensor_file"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    config["self_hash"] = self_hash(config)
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").write_bytes(data)


def configs(data: st.DataObject, artifact: Path, folder: Path) -> None:
    config = json.loads((artifact / "config.json").read_text())
    part = data.draw(st.sampled_from(["program", "program", "sites", "tensors", "shared", "preprocess", "classes"]))
    path = data.draw(st.sampled_from(leaves({part: config[part]})))
    change_config(artifact, folder / "b", path, copy.deepcopy(data.draw(WILD)))
    use(folder / "b")


def tensors(data: st.DataObject, artifact: Path, folder: Path) -> None:
    original = (artifact / "model.safetensors").read_bytes()
    header = int.from_bytes(original[:8], "little")
    changed = bytearray(original)
    end = data.draw(st.sampled_from([8, 8 + header, len(original)]))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed) - 1)) :]
    change_bytes(artifact, folder / "b", bytes(changed))
    use(folder / "b")


RELAXED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=150, deadline=None, suppress_health_check=RELAXED)
@given(data=st.data())
def test_any_value_of_the_config(data: st.DataObject, artifact: Path, tmp_path: Path) -> None:
    configs(data, artifact, tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=RELAXED)
@given(data=st.data())
def test_any_bytes_of_the_tensors(data: st.DataObject, artifact: Path, tmp_path: Path) -> None:
    tensors(data, artifact, tmp_path)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, derandomize=False, suppress_health_check=RELAXED)
@given(data=st.data())
def test_a_long_run(data: st.DataObject, artifact: Path, tmp_path: Path) -> None:
    (configs if data.draw(st.booleans()) else tensors)(data, artifact, tmp_path)
