"""The page around libvisq in headless Chromium: the oracle's bits, pictures dropped, nothing loaded."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import visq
from tests.report.browser import CHROMIUM, Browser
from visq.native.extension import available
from visq.runtime.engine import Engine
from visq.web import NEEDED, write_page

MISSING = [name for name in NEEDED if not shutil.which(name)] + ([] if CHROMIUM else ["chromium"])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="needs the extension"),
    pytest.mark.skipif(bool(MISSING), reason=f"the page is not tested: {', '.join(MISSING)} missing"),
]

RECIPES = ("fp32", "visq-w4a4-fused")
IMAGES = 64


@dataclass
class Made:
    page: Path
    engines: list[Engine]
    pixels: np.ndarray  # [IMAGES, 1, 28, 28] uint8, of the test set


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("page")
    artifacts = [folder / recipe for recipe in RECIPES]
    for recipe, artifact in zip(RECIPES, artifacts, strict=True):
        visq.quantize("vim_nano_fmnist", recipe, "fashion-mnist", samples=32, out=artifact, check=False)
    engines = [Engine(artifact, threads=1) for artifact in artifacts]
    test = visq.data.open_dataset("fashion-mnist", engines[0].preprocess, split="test")
    write_page(artifacts, folder / "index.html", samples=test)
    pixels, _ = next(iter(test.pixel_batches(IMAGES)))
    return Made(folder / "index.html", engines, pixels.numpy())


@pytest.fixture(scope="module")
def browser(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(made.page, 800)
        wait(browser, "shown")
        yield browser


def wait(browser: Browser, state: str) -> None:
    deadline = time.monotonic() + 60
    while (found := browser.evaluate("visqPage.state")) != state:
        assert found not in ("failed", "refused") and time.monotonic() < deadline, browser.evaluate(
            "document.getElementById('status').textContent"
        )
        time.sleep(0.05)


def logits(browser: Browser, network: int, rgb: np.ndarray) -> np.ndarray:
    """Of a prepared image [height, width, 3] uint8."""
    text = base64.b64encode(rgb.tobytes()).decode()
    prepared = f"Uint8Array.from(atob('{text}'), (c) => c.charCodeAt(0))"
    bits = f"Array.from(new Uint32Array(visqPage.logits({network}, {prepared}).buffer))"
    return np.array(browser.evaluate(bits), np.uint32).view(np.float32)


@pytest.mark.parametrize("network", range(len(RECIPES)), ids=RECIPES)
def test_logits_have_the_bits_of_the_engine(browser: Browser, made: Made, network: int) -> None:
    engine = made.engines[network]
    expected = engine(engine.preprocess.normalize_array(made.pixels))
    for pixels, row in zip(made.pixels, expected, strict=True):
        rgb = np.repeat(pixels.transpose(1, 2, 0), 3, axis=-1)
        assert np.array_equal(logits(browser, network, rgb), row)
    assert browser.evaluate("visqPage.level") == "wasm128"


def test_the_float_form_answers_as_pytorch_does(made: Made) -> None:
    """The page's FP32 is the engine in float32, whose sums have another order than PyTorch's."""
    import torch

    model = visq.load_model("vim_nano_fmnist")
    images = made.engines[0].preprocess.normalize_array(made.pixels)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    found = made.engines[0](images)
    assert np.abs(found - expected).max() < 1e-3
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))


def drop(browser: Browser, picture: Path) -> None:
    browser.evaluate("visqPage.state = 'waiting'")
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(picture)])


def test_a_picture_of_any_size_is_prepared_as_python_does(browser: Browser, made: Made, tmp_path: Path) -> None:
    for size in ((28, 28), (77, 31), (200, 333)):
        pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        drop(browser, tmp_path / "a.png")
        wait(browser, "shown")
        prepared = np.array(browser.evaluate("Array.from(visqPage.last.prepared[1])"), np.uint8)
        expected = made.engines[1].preprocess.pixels((tmp_path / "a.png").read_bytes())
        assert np.array_equal(prepared.reshape(28, 28, 3), np.repeat(expected.transpose(1, 2, 0), 3, axis=-1)), size
        shown = browser.evaluate(
            "[...document.querySelectorAll('.network')[1].querySelectorAll('td:first-child')].map(c => c.textContent)"
        )
        assert shown == [guess.name for guess in made.engines[1].predict(tmp_path / "a.png", top=5)[0]]


def test_what_is_no_picture_is_said(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    drop(browser, tmp_path / "a.png")
    deadline = time.monotonic() + 60
    while browser.evaluate("visqPage.state") != "refused":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    said = browser.evaluate("document.getElementById('status').textContent")
    assert said == "a.png: this browser cannot read it as a picture"


def test_samples_times_and_sizes_are_shown(browser: Browser, made: Made, tmp_path: Path) -> None:
    names = browser.evaluate("[...document.querySelectorAll('.sample')].map(b => b.dataset.name)")
    assert names == list(visq.load_model("vim_nano_fmnist").card.classes)
    browser.evaluate("document.querySelectorAll('.sample')[9].click()")
    wait(browser, "shown")
    times: list[float] = browser.evaluate("visqPage.last.times")
    assert len(times) == 2 and all(0 < time < 1000 for time in times)
    bytes_: list[Any] = browser.evaluate("[...document.querySelectorAll('.bytes data')].map(d => Number(d.value))")
    assert bytes_[0] > 2 * bytes_[1]
    assert browser.evaluate("document.getElementById('compared').textContent").startswith(
        "visq-w4a4-fused beside FP32: "
    )
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, True)])
def test_the_page_fits_loads_nothing_and_nothing_complains(
    browser: Browser, made: Made, width: int, dark: bool
) -> None:
    browser.open(made.page, width, dark=dark)
    wait(browser, "shown")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints == []
    loaded = {address for address in browser.requests if not address.startswith("data:image/")}
    assert loaded == {made.page.absolute().as_uri()}
