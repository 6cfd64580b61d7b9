"""`visq quantize`, `eval --masks --picture` and `segment` on a tiny network that gives each pixel a class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visq.cli.main import run
from visq.models import create_model, save_checkpoint
from visq.native.extension import available

pytestmark = pytest.mark.skipif(not available(), reason="needs the C++ extension")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with pairs in `data`, the checkpoint of a network and its artifact."""
    folder, rng = tmp_path_factory.mktemp("segmentation"), np.random.default_rng(0)
    for name, (height, width) in {"a": (20, 32), "b": (18, 13)}.items():
        mask = rng.integers(0, 4, (height, width), dtype=np.uint8)
        for kind, pixels in (("images", rng.integers(0, 256, (height, width, 3), dtype=np.uint8)), ("labels", mask)):
            (folder / "data" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "data" / kind / f"{name}.png")
    torch.manual_seed(0)
    model = create_model("vmamba_seg", embed_dim=8, depths=[1, 1], mlp_ratio=1, head_dim=8, num_classes=3)
    save_checkpoint(model, folder / "net.safetensors")
    arguments = ["--model", "vmamba_seg", "--checkpoint", str(folder / "net.safetensors"), "--recipe", "minmax-w8a8"]
    arguments += ["--image-size", "12", "--resize", "12", "--samples", "2", "--holdout", "0"]
    arguments += ["--calib", str(folder / "data"), "--out", str(folder / "artifact"), "--deploy-size", "20x32"]
    (folder / "classes.txt").write_text("sky\nroad\ntree\n")
    assert run(["quantize", *arguments, "--classes", str(folder / "classes.txt")]) == 0
    return folder


def test_masks_are_the_same_on_simulation_and_engine(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = {}
    for backend in ("sim", "int"):
        data, picture = ["--masks", str(place / "data")], ["--picture", str(place / f"{backend}.png")]
        arguments = ["eval", str(place / "artifact"), *data, *picture, "--backend", backend]
        assert run([*arguments, "--json", str(place / backend)]) == 0
        assert "mean IoU" in capfd.readouterr().out
        found[backend] = json.loads((place / backend).read_text())
    assert found["sim"]["matrix"] == found["int"]["matrix"]
    assert [row["class"] for row in found["int"]["classes"]] == ["sky", "road", "tree"]
    assert (place / "sim.png").read_bytes() == (place / "int.png").read_bytes()
    assert Image.open(place / "int.png").width == 3 * 32 + 8


def test_segment_writes_the_classes_that_eval_counts(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["segment", str(place / "artifact"), str(place / "data" / "images"), "-o", str(place / "masks")]
    assert run([*arguments, "--overlay", "--json", str(place / "segment.json")]) == 0
    assert "masks/a.png: 32 x 20" in capfd.readouterr().out
    assert run(["eval", str(place / "artifact"), "--masks", str(place / "data"), "--json", str(place / "eval")]) == 0
    matrix = np.array(json.loads((place / "eval").read_text())["matrix"])
    counted = np.zeros_like(matrix)
    for name in ("a", "b"):
        with Image.open(place / "masks" / f"{name}.png") as image:
            assert image.mode == "P"
            classes = np.array(image)
        mask = np.array(Image.open(place / "data" / "labels" / f"{name}.png"))
        np.add.at(counted, (mask[mask < 3], classes[mask < 3]), 1)
    assert np.array_equal(counted, matrix)
    assert Image.open(place / "masks" / "a-overlay.png").size == (32, 20)
    colours = json.loads((place / "segment.json").read_text())["colours"]
    assert list(colours) == ["sky", "road", "tree"] and len(set(colours.values())) == 3
    assert (place / "masks" / "legend.png").is_file()


def test_tiles_cover_an_image(place: Path) -> None:
    arguments = ["segment", str(place / "artifact"), str(place / "data" / "images" / "a.png"), "-o"]
    assert run([*arguments, str(place / "tiles"), "--tile", "16", "--overlap", "4"]) == 0
    assert Image.open(place / "tiles" / "a.png").size == (32, 20)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "ARTIFACT", "IMAGE"], "gives pixels a class; `visq segment` is for it"),
        (["upscale", "ARTIFACT", "IMAGE", "-o", "OUT"], "gives pixels a class; `visq segment` is for it"),
        (["segment", "ARTIFACT", "IMAGE", "-o", "OUT", "--tile", "4", "--overlap", "4"], "tiles of 4 pixels"),
        (["eval", "ARTIFACT", "--data", "DATA", "--picture", "x.png"], "give --masks"),
        (["eval", "ARTIFACT", "--data", "NAMED"], "gives each pixel a class, so it has no top-1"),
    ],
)
def test_refusals(place: Path, capfd: pytest.CaptureFixture[str], command: list[str], message: str) -> None:
    (place / "named" / "sky").mkdir(parents=True, exist_ok=True)
    shutil.copy(place / "data" / "images" / "a.png", place / "named" / "sky" / "a.png")
    where = {
        "ARTIFACT": "artifact",
        "IMAGE": "data/images/a.png",
        "OUT": "out",
        "DATA": "data/images",
        "NAMED": "named",
    }
    assert run([str(place / where[word]) if word in where else word for word in command]) == 1
    assert message in capfd.readouterr().err
