"""Images from many threads: every one gets its own result, in batches of the size and delay asked for."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest

import visq
from visq.errors import VisqError
from visq.models import create_model
from visq.runtime import Engine
from visq.runtime.batching import Batching


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    geometry = {"image_size": 28, "patch_size": 14, "stride": 14, "channels": 1, "embed_dim": 16, "depth": 1}
    model = create_model("vim", **geometry, num_classes=10)
    model.card = visq.load_model("vim_nano_fmnist").card
    folder = tmp_path_factory.mktemp("batching") / "a"
    visq.quantize(model, "minmax-w8a8", "fashion-mnist", samples=4, out=folder)
    return Engine(folder, threads=1)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(0, 1, (count, 1, 28, 28)).astype(np.float32)


class Recording:
    """Counts the images of every batch, and can be held up."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.free.wait(10)
        self.sizes.append(len(batch))
        return batch.reshape(len(batch), -1).sum(1, keepdims=True)


def recorded(run: Recording, **options: float) -> Batching:
    return Batching(run, lambda batch: None, None, **options)  # type: ignore[arg-type]


def test_every_caller_gets_the_logits_of_its_own_image(engine: Engine) -> None:
    batch = images(64)
    expected = engine(batch)
    with engine.batching(batch=5, delay=0.001) as requests, ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda image: requests.submit(image).result(10), batch))
    assert np.array_equal(np.stack(found), expected)


def test_predictions_are_those_of_the_engine(engine: Engine, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    with engine.batching() as requests:
        futures = [requests.predict(image, top=2) for image in pixels]
        assert [future.result(10) for future in futures] == engine.predict(pixels, top=2)
        with pytest.raises(VisqError, match=r"nowhere\.png cannot be read"):
            requests.predict(tmp_path / "nowhere.png")


def test_a_prediction_that_fails_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no names")

    with engine.batching() as requests:
        monkeypatch.setattr(requests._predictor, "named", fails)
        future = requests.predict(np.zeros((28, 28), np.uint8))
        assert isinstance(future.exception(10), RuntimeError)


def test_a_full_batch_runs_at_once_and_others_after_the_delay() -> None:
    run = Recording()
    with recorded(run, batch=4, delay=60.0) as requests:
        wait([requests.submit(image) for image in images(8)], 10)
        assert run.sizes == [4, 4]
    run = Recording()
    with recorded(run, batch=100, delay=0.05) as requests:
        start = time.monotonic()
        requests.submit(images(1)[0]).result(10)
        assert time.monotonic() - start >= 0.05 and run.sizes == [1]


def test_images_that_came_while_a_batch_ran_are_the_next_batch() -> None:
    run = Recording()
    run.free.clear()
    with recorded(run, batch=8, delay=0.0) as requests:
        first = requests.submit(images(1)[0])
        while not first.running():
            time.sleep(0.001)
        others = [requests.submit(image) for image in images(5)]
        run.free.set()
        wait([first, *others], 10)
    assert run.sizes == [1, 5]


def test_closing_runs_what_waits_and_refuses_more() -> None:
    run = Recording()
    requests = recorded(run, batch=100, delay=60.0)
    waiting = [requests.submit(image) for image in images(3)]
    requests.close()
    assert run.sizes == [3] and all(future.done() for future in waiting)
    with pytest.raises(VisqError, match="closed"):
        requests.submit(images(1)[0])


def test_a_bad_image_is_refused_alone_and_a_failing_run_is_told_to_all(engine: Engine) -> None:
    with engine.batching(batch=2, delay=60.0) as requests:
        good = requests.submit(images(1)[0])
        for bad in (np.full((1, 28, 28), np.nan, np.float32), np.zeros((1, 20, 28), np.float32)):
            with pytest.raises(VisqError):
                requests.submit(bad)
        second = requests.submit(images(1)[0])
        assert np.array_equal(good.result(10), second.result(10))

    def fails(batch: np.ndarray) -> np.ndarray:
        raise MemoryError("no room")

    with Batching(fails, lambda batch: None, None, batch=2, delay=60.0) as requests:  # type: ignore[arg-type]
        futures = [requests.submit(image) for image in images(2)]
        assert all(isinstance(future.exception(10), MemoryError) for future in futures)


def test_a_cancelled_image_does_not_run() -> None:
    run = Recording()
    with recorded(run, batch=3, delay=60.0) as requests:
        futures: list[Future] = [requests.submit(image) for image in images(2)]
        assert futures[0].cancel()
        requests.submit(images(1)[0]).result(10)
    assert run.sizes == [2]


def test_the_child_of_a_fork_is_told(engine: Engine) -> None:
    with engine.batching() as requests:
        child = os.fork()
        if child == 0:
            try:
                requests.submit(images(1)[0])
            except VisqError as error:
                os._exit(0 if "before a fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("options", [{"batch": 0}, {"delay": -1.0}, {"delay": float("inf")}, {"delay": float("nan")}])
def test_settings_out_of_range(engine: Engine, options: dict[str, float]) -> None:
    with pytest.raises(VisqError, match="batching needs"):
        engine.batching(**options)  # type: ignore[arg-type]
