"""Tests the engine's contenders: each computes the artifact's network with nothing quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visq
from visq.analysis.bench import (
    Contender,
    bench,
    example,
    expected_seconds,
    make_contenders,
    runtime_contenders,
    spoken,
    sqnr_db,
    without_quantizers,
)
from visq.artifact import load
from visq.errors import VisqError
from visq.models import create_model
from visq.progress import Progress
from visq.runtime import load_engine

GEOMETRY: dict[str, Any] = {"patch_size": 14, "stride": 14, "embed_dim": 16, "depth": 2, "d_state": 3}


def small_vim() -> Any:
    torch.manual_seed(0)
    model = create_model("vim", image_size=28, channels=1, num_classes=10, **GEOMETRY)
    model.card = visq.load_model("vim_nano_fmnist").card
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "a"
    visq.quantize(small_vim(), "visq-rotated-w8a8", "fashion-mnist", samples=4, out=folder)
    return folder


@pytest.mark.parametrize("backend", ["eager-fp32", "plain-pytorch", "compile-fp32"])
def test_they_compute_what_pytorch_computes(backend: str, artifact: Path) -> None:
    """A loaded network is deployed, with the engine's arithmetic. PyTorch's contenders must undo that."""
    network = load(artifact)
    weights = {name: value.clone() for name, value in network.named_parameters()}
    contender = next(c for c in make_contenders(network, None) if c.backend == backend)
    images = example(network.card.preprocess, 2)
    plain = small_vim()
    plain.load_state_dict(weights)
    with torch.no_grad():
        found, expected = contender.make(images)(), plain(torch.from_numpy(images))
    assert isinstance(found, torch.Tensor)
    if backend == "eager-fp32":
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", ["fp32", "int"])
def test_other_runtimes_compute_it_too(runtime: str, form: str, artifact: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip(runtime, reason=f"needs {runtime}")
    network, engine = load(artifact), load_engine(artifact, threads=1)
    expected = without_quantizers(load(artifact)) if form == "fp32" else load(artifact)
    run = runtime_contenders(network, artifact, engine, 1)[f"{runtime}-{form}"]().make
    for batch in (1, 3):
        images = example(network.card.preprocess, batch)
        with torch.no_grad():
            exact = expected(torch.from_numpy(images)).numpy()
        error = sqnr_db(np.asarray(run(images)()), exact)
        assert error is None or error > (80 if form == "fp32" else 15)


def test_bench_goes_on_without_a_runtime(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visq.export.runtimes.find_spec", lambda name: None)
    backends = ["eager-fp32", "onnxruntime-fp32"]
    rows, _ = bench(artifact, batches=[1], threads=1, seconds=0, backends=backends, progress=Progress("plain"))
    assert [(row["backend"], row["sqnr_db"]) for row in rows] == [("eager-fp32", None)]
    assert "no onnxruntime-fp32: onnxruntime is not installed: pip install onnxruntime" in capsys.readouterr().out
    with pytest.raises(VisqError, match="not installed"):
        bench(artifact, batches=[1], threads=1, seconds=0, backends=["onnxruntime-fp32"])


def test_every_row_says_how_far_it_is_from_fp32(artifact: Path) -> None:
    backends = ["int", "eager-fp32", "eager-bf16"]
    rows, _ = bench(artifact, batches=[1], threads=1, seconds=0, backends=backends)
    assert {row["name"] for row in rows} == {"a"}
    errors = {row["backend"]: row["sqnr_db"] for row in rows}
    assert errors["eager-fp32"] is None and errors["eager-bf16"] > 20 and 3 < errors["int"] < 40


def test_the_distance_to_fp32() -> None:
    exact = np.array([[3.0, 4.0]], np.float32)
    assert sqnr_db(exact, exact) is None
    assert sqnr_db(exact + np.float32(0.5), exact) == pytest.approx(10 * np.log10(25 / 0.5))
    for value in (np.nan, np.inf):
        assert np.isnan(sqnr_db(np.array([[3.0, value]], np.float32), exact))


def test_the_forecast_counts_every_contender_and_batch() -> None:
    def make(images: object) -> object:
        raise AssertionError

    fast, compiled, slow = Contender("int", make), Contender("compile-fp32", make), Contender("plain", make, slow=True)  # type: ignore[arg-type]
    assert expected_seconds([fast], [1], 3.0, 0.0) == 3.0
    assert expected_seconds([fast, fast], [1, 8], 3.0, 0.0) == 12.0
    assert expected_seconds([compiled], [1], 3.0, 0.0) == 33.0
    # Four warm-up calls and seven rounds of half a second; the slow one has three rounds, each twenty times as long.
    assert expected_seconds([fast], [1], 1.0, 0.5) == pytest.approx(5.5)
    assert expected_seconds([slow], [1], 1.0, 0.5) == pytest.approx(70.0)
    assert (spoken(3.2), spoken(119), spoken(600)) == ("3 s", "119 s", "10 min")


def test_the_time_is_said_first(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(artifact, batches=[1], threads=1, seconds=0.01, backends=["int"], repeats=2, progress=Progress("plain"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("this takes about ") and "warming up int" in lines[1]
