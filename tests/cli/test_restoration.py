"""`visq quantize --deploy-size`, `visq eval --hr --lr` and `visq upscale` on a tiny network that enlarges images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visq.cli.main import run
from visq.models import create_model
from visq.native.extension import available

pytestmark = pytest.mark.skipif(not available(), reason="needs the C++ extension")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a checkpoint as BasicSR writes it, pairs of images in hr and lr, and an artifact."""
    folder = tmp_path_factory.mktemp("restoration")
    torch.manual_seed(0)
    model = create_model("dvmsr", embed_dim=8, depths=[1], d_state=2, upscale=2)
    weights = model.state_dict()
    averaged = {name: value + 0.01 for name, value in weights.items()}
    torch.save({"params": weights, "params_ema": averaged}, folder / "net.pth")
    rng = np.random.default_rng(0)
    for part, scale in (("hr", 2), ("lr", 1)):
        (folder / part).mkdir()
        for name, (height, width) in {"a": (9, 12), "b": (11, 8)}.items():
            low = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
            low.resize((width * scale, height * scale), Image.Resampling.BICUBIC).save(folder / part / f"{name}.png")
    arguments = ["--model", "dvmsr", "--checkpoint", str(folder / "net.pth"), "--recipe", "minmax-w8a8"]
    arguments += ["--without-positions", "--image-size", "6", "--resize", "8", "--samples", "2", "--holdout", "0"]
    arguments += ["--calib", str(folder / "lr"), "--out", str(folder / "artifact"), "--deploy-size", "9x12,11x8"]
    assert run(["quantize", *arguments]) == 0
    return folder


def test_psnr_and_ssim_of_pairs_are_the_same_on_simulation_and_engine(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = {}
    pairs = ["--hr", str(place / "hr"), "--lr", str(place / "lr")]
    for backend in ("sim", "int"):
        assert run(["eval", str(place / "artifact"), *pairs, "--backend", backend, "--json", str(place / backend)]) == 0
        text = capfd.readouterr().out
        assert "luma of BT.601, output rounded to 8 bits, 2 pixels of border left out" in text
        found[backend] = json.loads((place / backend).read_text())
    for key in ("psnr_y", "ssim_y", "images"):
        assert found["sim"][key] == found["int"][key]
    assert [image["image"] for image in found["int"]["images"]] == ["a", "b"] and found["int"]["border"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hr", "hr"], "--hr and --lr belong together"),
        ([], "give --data with labelled images for top-1, or --hr and --lr"),
        (["--hr", "hr", "--lr", "lr", "--data", "lr"], "give --data with labelled images for top-1, or --hr and --lr"),
        (["--hr", "lr", "--lr", "hr"], "over 2 would be"),
    ],
)
def test_what_eval_refuses(
    arguments: list[str], message: str, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert run(["eval", "artifact", *arguments]) == (1 if arguments else 2)  # a missing option is wrong usage
    assert message in capfd.readouterr().err


def test_a_classifier_has_no_psnr(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "vim_nano_fmnist", "--hr", str(place / "hr"), "--lr", str(place / "lr")]) == 1
    assert "does not enlarge images, so it has no PSNR" in capfd.readouterr().err


def test_upscale_writes_images_that_eval_would_see(
    place: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["upscale", str(place / "artifact"), str(place / "lr"), "-o", str(out), "--tile", "8", "--overlap", "4"]
    assert run(command) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png"]
    assert Image.open(out / "a.png").size == (24, 18) and Image.open(out / "b.png").size == (16, 22)
    assert "megapixels a second" in capfd.readouterr().out
    assert run(command) == 1
    assert "exists; choose another folder or pass --overwrite" in capfd.readouterr().err
    assert run([*command, "--overwrite"]) == 0
    assert (
        run(["upscale", str(place / "artifact"), str(place / "lr"), "-o", str(out), "--tile", "8", "--overlap", "8"])
        == 1
    )
    assert "cannot overlap by 8" in capfd.readouterr().err


def test_predict_says_that_there_are_no_classes(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(place / "artifact"), str(place / "lr")]) == 1
    assert "returns images, not classes; `visq upscale` is for it" in capfd.readouterr().err


def test_export_writes_a_network_for_images_of_a_size(
    place: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["export", str(place / "artifact"), "--format", "visq", "--out", str(tmp_path / "a.visq")]
    assert run([*command, "--size", "9x12"]) == 0
    assert "logits are the engine's bits" in capfd.readouterr().out
    assert run([*command, "--size", "9x12,11x8", "--overwrite"]) == 1
    assert "a file takes images of one size" in capfd.readouterr().err


@pytest.mark.parametrize("sizes", ["12", "0x4", "4x", "4x4,", "4,4"])
def test_sizes_are_written_as_height_and_width(sizes: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "vim_nano_fmnist", "--recipe", "minmax-w8a8", "--calib", "fashion-mnist"]
    assert run(["quantize", *arguments, "--out", str(place / "b"), "--deploy-size", sizes]) == 1
    assert "sizes are written as HEIGHTxWIDTH" in capfd.readouterr().err


def test_a_network_with_positions_has_no_other_size(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "vim_nano_fmnist", "--recipe", "minmax-w8a8", "--calib", "fashion-mnist"]
    assert run(["quantize", *arguments, "--samples", "2", "--out", str(place / "b"), "--deploy-size", "56x56"]) == 1
    assert "made for images of 28 x 28 pixels" in capfd.readouterr().err


def test_basicsr_checkpoints_hold_plain_and_averaged_weights(place: Path, tmp_path: Path) -> None:
    import visq

    plain = visq.load_model("dvmsr", checkpoint=place / "net.pth")
    averaged = visq.load_model("dvmsr", checkpoint=place / "net.pth", ema=True)
    assert torch.allclose(averaged.norm_f.weight, plain.norm_f.weight + 0.01)
    torch.save({"params_ema": averaged.state_dict()}, tmp_path / "only.pth")
    only = visq.load_model("dvmsr", checkpoint=tmp_path / "only.pth")
    assert torch.equal(only.norm_f.weight, averaged.norm_f.weight)
