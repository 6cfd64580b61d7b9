"""Tests the engine's contenders: each computes the artifact's network with nothing quantized."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visq
from tests.other_device import other_device
from visq.analysis.bench import (
    ROUNDS,
    bench,
    example,
    expected_seconds,
    one_batch,
    spoken,
    sqnr_db,
    take_turns,
    timed,
    top1,
)
from visq.analysis.contenders import Contender, make_contenders, optional_contenders, without_quantizers
from visq.analysis.evaluate import evaluate
from visq.artifact import load
from visq.data import open_dataset
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
        found, expected = contender.make(images)(images), plain(torch.from_numpy(images))
    assert isinstance(found, torch.Tensor)
    if backend == "eager-fp32":
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_pytorch_on_another_device(artifact: Path) -> None:
    """Images and outputs are on the CPU; runtimes of others do not take part."""
    with other_device() as device:
        rows, _ = bench(artifact, batches=[2], threads=1, seconds=0, backends=["int", "eager-fp32"], device=device)
        assert [row["backend"] for row in rows] == ["int", "eager-fp32"]
        assert rows[1]["sqnr_db"] is None or rows[1]["sqnr_db"] > 100
        with pytest.raises(VisqError, match="openvino-fp32 cannot run here; there are "):
            bench(artifact, batches=[1], threads=1, backends=["int", "openvino-fp32"], device=device)
    assert [c.backend for c in make_contenders(load(artifact), None) if "fp16" in c.backend] == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", ["fp32", "int"])
def test_other_runtimes_compute_it_too(runtime: str, form: str, artifact: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip(runtime, reason=f"needs {runtime}")
    network, engine = load(artifact), load_engine(artifact, threads=1)
    expected = without_quantizers(load(artifact)) if form == "fp32" else load(artifact)
    run = optional_contenders(network, artifact, engine, 1)[f"{runtime}-{form}"]().make
    for batch in (1, 3):
        images = example(network.card.preprocess, batch)
        with torch.no_grad():
            exact = expected(torch.from_numpy(images)).numpy()
        error = sqnr_db(np.asarray(run(images)(images)), exact)
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

    fast, slow = Contender("int", make), Contender("plain", make, slow=True)  # type: ignore[arg-type]
    compiled = Contender("compile-fp32", make, compiles=True)  # type: ignore[arg-type]
    assert expected_seconds([fast], [1], 3.0, 0.0) == pytest.approx(3.6)  # a fifth of the time is rest
    assert expected_seconds([fast, fast], [1, 8], 3.0, 0.0) == pytest.approx(14.4)
    assert expected_seconds([compiled], [1], 3.0, 0.0) == pytest.approx(33.6)
    # Four warm-up calls and seven rounds of half a second; the slow one has three rounds, each twenty times as long.
    assert expected_seconds([fast], [1], 1.0, 0.5) == pytest.approx(2.0 + 1.2 * 3.5)
    assert expected_seconds([slow], [1], 1.0, 0.5) == pytest.approx(40.0 + 1.2 * 30.0)
    assert (spoken(3.2), spoken(119), spoken(600)) == ("3 s", "119 s", "10 min")


def test_contenders_take_turns_and_rest_before_each(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    clock = itertools.count(step=0.03)
    monkeypatch.setattr("visq.analysis.bench.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("visq.analysis.bench.time.sleep", lambda seconds: events.append("rest"))
    runs = {name: functools.partial(events.append, name) for name in ("fast", "slow")}
    times = take_turns(runs, {"slow"}, seconds=0.2)
    assert len(times["fast"]) == ROUNDS and len(times["slow"]) == 3
    assert np.allclose(times["fast"], 0.03)
    assert events[:6] == ["rest", "fast", "fast", "rest", "slow", "slow"] and events[-1] == "fast"
    assert all(pair != ("fast", "slow") for pair in itertools.pairwise(events))


def test_the_time_is_said_first(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(artifact, batches=[1], threads=1, seconds=0.01, backends=["int"], repeats=2, progress=Progress("plain"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("this takes about ") and "warming up int" in lines[1]


def test_top1_of_every_contender(artifact: Path) -> None:
    data = open_dataset("fashion-mnist", load(artifact).card.preprocess, split="test").subset(7, seed=0)
    rows, _ = bench(artifact, batches=[3], threads=1, seconds=0, backends=["int", "eager-fp32"], data=data)
    found = {row["backend"]: row["top1"] for row in rows}
    network = load(artifact)
    assert found["int"] == pytest.approx(evaluate(network, data).top1)
    assert found["eager-fp32"] == pytest.approx(evaluate(without_quantizers(network), data).top1)


def test_top1_takes_whole_batches_and_counts_no_image_twice() -> None:
    data = open_dataset("fashion-mnist", visq.load_model("vim_nano_fmnist").card.preprocess, split="test")
    data, shapes = data.select(range(7)), set()
    labels = next(iter(data.batches(7)))[1]

    def run(images: np.ndarray) -> np.ndarray:
        shapes.add(images.shape)
        return np.eye(10)[[int(labels[0])] * len(images)]

    assert top1(run, data, 3) == pytest.approx(100 * float((labels == labels[0]).double().mean()))
    assert shapes == {(3, 1, 28, 28)} and one_batch(data, 9).shape == (9, 1, 28, 28)


def test_a_batch_is_drawn_from_all_images() -> None:
    data = open_dataset("fashion-mnist", visq.load_model("vim_nano_fmnist").card.preprocess, split="test").subset(40, 0)
    data = data.select(sorted(range(40), key=data.labels.__getitem__))
    every = next(iter(data.batches(40)))[0].numpy()
    batch = one_batch(data, 8)
    classes = {data.labels[int((every == image).all((1, 2, 3)).argmax())] for image in batch}
    assert len(set(data.labels[:8])) < 4 < len(classes) and np.array_equal(batch, one_batch(data, 8))


def test_what_compiles_while_it_is_timed_is_timed_again(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def run() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            torch._dynamo.utils.counters["frames"]["total"] += 1

    times = timed({"compile-fp32": run}, set(), 0, Progress("plain"))
    assert len(times["compile-fp32"]) == 7 and len(calls) == 14
    assert "timed again" in capsys.readouterr().out

    def always() -> None:
        torch._dynamo.utils.counters["frames"]["total"] += 1

    with pytest.raises(VisqError, match="compiles again in every round"):
        timed({"compile-fp32": always}, set(), 0, Progress("silent"))


@pytest.mark.slow
def test_torchao_computes_it_in_8_bits(artifact: Path) -> None:
    pytest.importorskip("torchao", reason="needs torchao")
    network = load(artifact)
    images = example(network.card.preprocess, 2)
    with torch.no_grad():
        exact = without_quantizers(load(artifact))(torch.from_numpy(images)).numpy()
        found = optional_contenders(network, artifact, None, 1)["torchao-int8"]().make(images)(images)
    error = sqnr_db(found.numpy(), exact)
    assert error is not None and 10 < error < 60
