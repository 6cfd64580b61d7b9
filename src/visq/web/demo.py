"""The page of the embedded network, in FP32 and at 4 bits."""

from __future__ import annotations

import tempfile
from pathlib import Path

from visq import pipeline
from visq.data import open_dataset
from visq.models import load_model
from visq.recipes import get_recipe
from visq.web.compiled import compile_library
from visq.web.page import Page, write_page

MODEL, DATA = "vim_nano_fmnist", "fashion-mnist"
RECIPES = ("fp32", "visq-w4a4-fused")
SAMPLES = 256
#: Where the page is written when nobody says where: in the checkout that it is compiled from.
PAGE = Path(__file__).resolve().parents[3] / "build" / "web" / "index.html"


def write_demo(out: Path, *, samples: int = SAMPLES, seed: int = 0) -> Page:
    """Quantizes the embedded network and writes the page.

    Arguments:
        out: the HTML file.
        samples: calibration images, drawn by `seed`.
    Raises:
        VisqError: the library cannot be compiled, or bad numbers.
    """
    library = compile_library()  # first, because this is what may be impossible here
    with tempfile.TemporaryDirectory(prefix="visq-web-") as room:
        folders = []
        for name in RECIPES:
            model = load_model(MODEL)
            images = open_dataset(DATA, model.card.preprocess, split="calib")
            calibration, _ = pipeline.draw(images, samples, 0, seed)
            folders.append(Path(room) / name)
            pipeline.quantize(model, get_recipe(name), calibration, seed=seed, out=folders[-1], check=False)
        test = open_dataset(DATA, model.card.preprocess, split="test", classes=model.card.classes)
        return write_page(folders, out, samples=test, library=library)
