"""ONNX: codes and scans against their NumPy definitions, whole networks against the engine."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import visq
from tests.cli.conftest import visq_command
from tests.lowering.bundles import ParameterBundle
from tests.runtime.programs import QUANTIZERS, Maker, quantizer, weight
from visq.errors import VisqError
from visq.export import export
from visq.integer import float_scan as integer_float_scan
from visq.integer.codecs import FactorCodec, StateCodec
from visq.integer.float_scan import FloatScan
from visq.integer.operations import DenseConv2d, Patches
from visq.lowering import lower
from visq.models import create_model
from visq.runtime.bundle import read_bundle
from visq.runtime.oracle import Oracle

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")

from visq.export.codes import LARGEST_TABLE, encode  # noqa: E402
from visq.export.graph import Graph  # noqa: E402
from visq.export.program import to_onnx  # noqa: E402
from visq.export.runtimes import RUNTIMES, installed  # noqa: E402
from visq.export.scan import CHUNK, float_scan  # noqa: E402


def run(graph: Graph, inputs: dict[str, np.ndarray], *outputs: str) -> list[np.ndarray]:
    """Runs a graph in onnxruntime on named inputs."""
    shapes = [(name, list(value.shape)) for name, value in inputs.items()]
    model = graph.model(shapes, [(name, [None] * 3) for name in outputs])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(outputs), inputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", [*(kind for kind in QUANTIZERS if "table" not in kind), "token 4 bits"])
def test_codes_are_those_of_the_codec(kind: str, reverse: bool) -> None:
    rows, width = 6, 10
    codec = quantizer(kind, rows, width, np.random.default_rng(0))
    x = np.random.default_rng(1).normal(0, 1.5, (2, rows, width)).astype(np.float32)
    order = np.arange(rows)[:: -1 if reverse else 1]
    codes = np.stack([codec.encode(image, order) for image in x])
    graph = Graph()
    coded = encode(graph, "site", codec, "x", reverse)
    outputs = (graph.node("Identity", coded.integers), coded.decoded(graph))
    if kind == "token 4 bits":
        pytest.importorskip("openvino", reason="whose codes were other ones")
        model = graph.model([("x", list(x.shape))], [(name, [None] * 3) for name in outputs[:1]])
        found = RUNTIMES["openvino"](model.SerializeToString(), 1)[0](x)
        np.testing.assert_array_equal(found, np.stack([codec.integers(image, order) for image in codes]))
    found, values = run(graph, {"x": x}, *outputs)
    expected = np.stack([codec.integers(image, order) for image in codes])
    # A value on the edge between two codes may fall to either side, because one divides and the other multiplies.
    assert np.abs(found - expected).max() <= 1 and (found != expected).mean() < 0.01
    same = found == expected
    decoded = np.stack([codec.decode(image, order) for image in codes])
    np.testing.assert_allclose(values[same], decoded[same], rtol=1e-6)


def test_tables_take_the_nearest_value_or_are_refused() -> None:
    codec = quantizer("table channel", 4, 8, np.random.default_rng(0))
    assert codec.table is not None and len(codec.table) == LARGEST_TABLE
    x = np.random.default_rng(1).normal(0, 30, (2, 4, 8)).astype(np.float32)
    graph = Graph()
    found = run(graph, {"x": x}, encode(graph, "site", codec, "x", False).decoded(graph))[0]
    expected = np.stack([codec.decode(codec.encode(image, np.arange(4)), np.arange(4)) for image in x])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(VisqError, match="site: a table of 200 values on an activation has no ONNX form"):
        encode(Graph(), "site", quantizer("table", 4, 8, np.random.default_rng(0)), "x", False)


@pytest.mark.parametrize("length", [1, CHUNK + 3])
@pytest.mark.parametrize("rounded", list(product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_scans_are_the_float32_recurrence(length: int, rounded: tuple[bool, bool, bool], reverse: bool) -> None:
    batch, channels, states = 2, 5, 3
    rng = np.random.default_rng(length)
    A = -np.exp(rng.normal(size=(channels, states))).astype(np.float32)
    u, delta = rng.normal(size=(2, batch, length, channels)).astype(np.float32)
    delta = np.abs(delta)
    B, C = rng.normal(size=(2, batch, length, states)).astype(np.float32)
    divisors = rng.uniform(0.5, 2, channels).astype(np.float32)
    abar = FactorCodec(8, 0, 255, np.float32(1 / 255), np.ones(1, np.float32), None) if rounded[0] else None
    bbar = FactorCodec(8, -128, 127, np.float32(0.03), divisors, None) if rounded[1] else None
    h = None
    if rounded[2]:
        step = rng.uniform(0.02, 0.05, length).astype(np.float32)
        h = StateCodec(-128, 127, 8, step, divisors, np.ones(states, np.float32), read_quantized=length == 1)
    order = slice(None, None, -1 if reverse else 1)
    form = FloatScan(A, abar, bbar, h, "test")
    expected = np.stack(
        [integer_float_scan.float_scan(form, *(x[b][order] for x in (u, delta, B, C)))[order] for b in range(batch)]
    )
    graph = Graph()
    y = float_scan(graph, form, ("u", "delta", "B", "C"), length, reverse)
    found = run(graph, {"u": u, "delta": delta, "B": B, "C": C}, y)[0]
    # Where something is rounded, an element on an edge may take the next code, and the state carries it on.
    loose = np.abs(found - expected) > 1e-4 * (1 + np.abs(expected))
    assert loose.mean() <= (0.05 if any(rounded) else 0)
    assert np.abs(found - expected).max() < 0.2


VIM = dict(image_size=28, patch_size=9, stride=9, channels=1, embed_dim=16, depth=1, d_state=4, num_classes=10)
VMAMBA = dict(image_size=28, channels=1, embed_dim=16, depths=(1,), num_classes=10)


@pytest.fixture(scope="module", params=["vim", "vmamba"])
def network(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return request.param, VIM if request.param == "vim" else VMAMBA


def sqnr(found: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / max(np.square(found - expected).sum(), 1e-30)))


@pytest.mark.parametrize(
    "recipe", ["minmax-w8a8-linear", "kscaled-w8a8", "visq-rotated-w4a8-fused", "visq-ladder-w8a8"]
)
def test_networks_are_the_engines(recipe: str, network: tuple[str, dict[str, object]], tmp_path: Path) -> None:
    """Scans in fixed point give the same codes; `minmax-w8a8-linear` leaves them in float32."""
    torch.manual_seed(0)
    model = create_model(network[0], **network[1])
    model.card = visq.load_model("vim_nano_fmnist").card
    visq.quantize(model, recipe, "fashion-mnist", samples=4, out=tmp_path / "a")
    dataset = visq.data.open_dataset("fashion-mnist", model.card.preprocess, split="test")
    images = next(iter(dataset.subset(16, 0).batches(16)))[0].numpy()
    bundle = read_bundle(tmp_path / "a")
    assert bundle.config.program is not None
    expected = Oracle(bundle.config.program, bundle)(images)
    content = to_onnx(bundle.config.program, bundle).SerializeToString()
    for open_content in installed().values():
        run = open_content(content, 1)[0]
        found = run(images)
        assert sqnr(found, expected) > 30
        # An image in which no value takes the neighbour of its code has the engine's logits.
        assert np.isclose(found, expected, rtol=1e-4, atol=1e-5).all(1).sum() >= 8
        assert run(images[:1]).shape == (1, 10)  # any batch


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "artifact"
    visq.quantize("vim_nano_fmnist", "minmax-w8a8", "fashion-mnist", samples=8, out=folder)
    return folder


def test_the_command_writes_runs_and_compares(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    arguments = ["export", artifact, "-o", out, "--data", "fashion-mnist", "--limit", 32, "--json", "-"]
    done = visq_command(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] == out.stat().st_size
    row = found["agreement"][0]
    assert row["runtime"].startswith("onnxruntime") and row["images"] == 32
    assert row["same"] >= 0.9 and row["sqnr_db"] > 15
    again = visq_command("export", artifact, "-o", out)
    assert again.returncode != 0 and "exists; choose another name or pass --overwrite" in again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_same_artifact_same_bytes(artifact: Path, tmp_path: Path) -> None:
    first, second = (export(artifact, tmp_path / name).path.read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second


def test_a_runtime_that_returns_nothing_leaves_no_file(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visq.export import runtimes

    empty = (lambda images: np.zeros((0, 10), np.float32), "0")
    monkeypatch.setitem(runtimes.RUNTIMES, "onnxruntime", lambda content, threads: empty)
    with pytest.raises(VisqError, match=r"onnxruntime gives \[0, 10\] instead of \[2, 10\]"):
        export(artifact, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_are_named(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(VisqError, match="format 'tflite' is unknown; there are onnx"):
        export(artifact, tmp_path / "net", format="tflite")


def answers(onnx: object, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(onnx.SerializeToString(), providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def test_a_network_that_returns_images_that_are_not_square() -> None:
    torch.manual_seed(0)
    model = create_model("dvmsr", embed_dim=8, depths=[1], d_state=2, upscale=3).eval().requires_grad_(False)
    images = torch.rand(2, 3, 6, 9) - 0.4
    found = answers(to_onnx(lower(model, (6, 9)), ParameterBundle(model)), images.numpy())
    assert found.shape == (2, 3, 18, 27)
    np.testing.assert_allclose(found, model(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["tensor asymmetric", "channel"])
def test_dense_convolutions_of_codes(kind: str) -> None:
    maker = Maker(0, size=6)
    maker.operation(Patches(patch=1, stride=1), 36, 3)
    x = maker.store(kind=kind, top=2.0)
    w = maker.site(weight(5, (3, 3, 2), maker.rng))
    source = DenseConv2d(input=x, weight=w, bias=maker.parameter(5), kernel=(3, 2), stride=(2, 1), padding=(1, 0))
    maker.operation(source, 15, 5)
    output = maker.store()
    maker.tensors[output] = maker.tensors[output].model_copy(update={"height": 3})
    program = maker.program(output).model_copy(update={"output_map": True})
    images = maker.images(2)
    expected = Oracle(program, maker.bundle)(images)
    assert expected.shape == (2, 5, 3, 5)
    found = answers(to_onnx(program, maker.bundle), images)
    step = np.abs(expected).max() / 100  # a value between two codes may fall to either side
    assert np.abs(found - expected).max() < step and np.median(np.abs(found - expected)) < 1e-5
