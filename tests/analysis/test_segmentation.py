"""Tests masks as data, and mean IoU in FP32, in simulation and on the engine."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import visq
from visq.analysis import EngineModel
from visq.analysis.mask_picture import MaskPicture
from visq.analysis.segmentation import evaluate_masks
from visq.cli.main import run
from visq.data import Preprocess, open_dataset
from visq.data.confusion import Segmentation, confusion
from visq.data.masks import open_masks, subset
from visq.errors import VisqError
from visq.models import create_model, save_checkpoint
from visq.models.family import FAMILIES, Family, register_family
from visq.models.layers import CheckImages, Conv2d, LayerNorm, PixelShuffle
from visq.models.ssm import MambaMixer
from visq.models.stage import Stage, StagedNetwork
from visq.native.extension import available
from visq.recipes import get_recipe


@dataclass(frozen=True)
class MosaicConfig:
    channels: int = 3
    dim: int = 8
    classes: int = 3


class Mosaic(StagedNetwork):
    """Gives each pixel a class: a convolution of 4 x 4, a mixer, a convolution and a pixel shuffle."""

    def __init__(self, config: MosaicConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.check_images = CheckImages(config.channels, None, "Mosaic", multiple=4)
        self.first, self.norm = Conv2d(config.channels, dim, 4, stride=4), LayerNorm(dim)
        self.mixer = MambaMixer(dim, 2)
        self.last, self.shuffle = Conv2d(dim, 16 * config.classes, 1), PixelShuffle(4)

    def stages(self) -> list[Stage]:
        return [Stage("all", self.all, ("first", "norm", "mixer", "last"))]

    def all(self, images: Tensor) -> tuple[Tensor]:
        x = self.first(self.check_images(images).permute(0, 2, 3, 1))
        x = self.mixer(self.norm(x.flatten(1, 2))).unflatten(1, x.shape[1:3])
        return (self.shuffle(self.last(x)).permute(0, 3, 1, 2),)


@pytest.fixture(scope="module", autouse=True)
def mosaic() -> Iterator[None]:
    def infer(shapes: Any, hints: Any, known: Any = ()) -> MosaicConfig:
        if "first.weight" not in shapes or "mixer.A_log" not in shapes:
            raise VisqError("not a Mosaic checkpoint")
        return MosaicConfig(3, shapes["first.weight"][0], shapes["last.weight"][0] // 16)

    register_family(
        Family(
            "mosaic",
            "Mosaic",
            MosaicConfig,
            Mosaic,
            infer,
            preprocess=lambda config: Preprocess(16, 16, (0.5,) * 3, (0.5,) * 3),
            any_size=True,
            roles={"ends": ("?first", "?last")},
        )
    )
    yield
    del FAMILIES["mosaic"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with pairs of two sizes in `data`, the same as `data.tar`, a checkpoint and an artifact."""
    root, rng = tmp_path_factory.mktemp("masks"), np.random.default_rng(0)
    for name, (height, width) in {"a": (16, 24), "b": (12, 20), "c": (16, 16)}.items():
        mask = rng.integers(0, 4, (height // 4, width // 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        for kind, pixels in (("images", rng.integers(0, 256, (height, width, 3), dtype=np.uint8)), ("labels", mask)):
            (root / "data" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "data" / kind / f"{name}.png")
    with tarfile.open(root / "data.tar", "w") as archive:
        archive.add(root / "data", arcname=".")
    torch.manual_seed(0)
    model = create_model("mosaic").eval().requires_grad_(False)
    save_checkpoint(model, root / "mosaic.safetensors")
    images = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    visq.quantize(model, get_recipe("minmax-w8a8"), images, samples=4, held_out=0, out=root / "artifact")
    return root


@pytest.mark.parametrize("name", ["data", "data.tar"])
def test_masks_are_no_images_to_calibrate_with(folder: Path, name: str) -> None:
    dataset = open_dataset(folder / name, Preprocess.imagenet(16, 16), split="calib")
    assert len(dataset) == 3 and not dataset.labelled


def test_iou_of_a_known_matrix() -> None:
    found = Segmentation(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]), 1)
    assert found.iou == (6 / 9, 3 / 6, None)
    assert found.mean_iou == pytest.approx((6 / 9 + 3 / 6) / 2) and found.accuracy == 9 / 12


def test_numbers_without_a_class_do_not_count_unless_another_is_named() -> None:
    found, mask = np.array([[0, 1], [2, 2]]), np.array([[0, 2], [2, 11]], np.uint8)
    expected = np.zeros((3, 3), np.int64)
    expected[0, 0] = expected[2, 1] = expected[2, 2] = 1
    assert np.array_equal(confusion(found, mask, 3, None, "x"), expected)
    assert np.array_equal(confusion(found, mask, 3, 11, "x"), expected)
    with pytest.raises(VisqError, match="the mask of x has class 11, and the network has 3: 0 to 2"):
        confusion(found, mask, 3, 0, "x")


@pytest.mark.skipif(not available(), reason="needs the C++ extension")
def test_fp32_simulation_and_engine_over_a_folder_and_a_tar(folder: Path) -> None:
    pairs = open_masks(folder / "data")
    assert [pair.name for pair in pairs] == [pair.name for pair in open_masks(folder / "data.tar")] == ["a", "b", "c"]
    assert [pair.name for pair in subset(pairs, 2)] == ["a", "b"]
    fp32 = visq.load_model("mosaic", checkpoint=folder / "mosaic.safetensors")
    exact = evaluate_masks(fp32, pairs)
    mask = np.asarray(Image.open(folder / "data/labels/a.png"))
    assert exact.images == 3 and exact.matrix.shape == (3, 3)
    assert exact.matrix.sum() == sum((pair.read(3)[1] < 3).sum() for pair in pairs) > (mask < 3).sum()
    simulated = evaluate_masks(visq.load(folder / "artifact"), pairs)
    deployed = evaluate_masks(EngineModel(folder / "artifact"), open_masks(folder / "data.tar"))
    assert np.array_equal(simulated.matrix, deployed.matrix)
    assert simulated.mean_iou == pytest.approx(exact.mean_iou, abs=0.1)


class Half(nn.Module):
    """Returns the right class of each pixel on a map of half the size."""

    def __init__(self, card: Any, mask: np.ndarray) -> None:
        super().__init__()
        self.card = card
        self.logits = nn.functional.one_hot(torch.from_numpy(mask[::2, ::2].astype(np.int64)), 4).permute(2, 0, 1)[None]

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.float()


def test_smaller_maps_are_enlarged(folder: Path) -> None:
    pair = open_masks(folder / "data")[0]
    found = evaluate_masks(Half(create_model("mosaic").card, pair.read(3)[1]), [pair])
    assert found.accuracy > 0.8 and found.matrix.sum() == 16 * 24


def test_the_command_line_prints_a_table(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["mosaic", "--checkpoint", str(folder / "mosaic.safetensors"), "--masks", str(folder / "data.tar")]
    assert run(["eval", *arguments, "--limit", "2"]) == 0
    text = capfd.readouterr().out
    assert "mean IoU" in text and "one confusion matrix over all images" in text and "2 images of" in text
    assert run(["eval", *arguments, "--ignore", "2"]) == 1
    assert "has class 3, and the network has 3" in capfd.readouterr().err
    assert run(["eval", "vim_nano_fmnist", "--masks", str(folder / "data")]) == 1
    assert "error: " in capfd.readouterr().err


def bad(folder: Path, what: str) -> Path:
    """Makes a folder of masks with one fault."""
    grey, colours = Image.new("L", (8, 8)), Image.new("RGB", (8, 8))
    files = {"images/a.png": colours, "labels/a.png": grey}
    if what == "alone":
        files["images/b.png"] = colours
    elif what == "colours":
        files["labels/a.png"] = colours
    elif what == "size":
        files["labels/a.png"] = Image.new("L", (4, 8))
    elif what == "folder":
        files = {"pictures/a.png": colours, "labels/a.png": grey}
    for name, image in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        data = io.BytesIO()
        image.save(data, "PNG")
        (folder / name).write_bytes(b"no image" if what == "damaged" and "labels" in name else data.getvalue())
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("alone", "hold the same names, but b is not in both"),
        ("folder", "masks come in folders images and labels, and here is pictures"),
        ("colours", "a mask has one number a pixel, and this file has colours"),
        ("size", "a: image and mask have 8x8 and 4x8 pixels"),
        ("damaged", "a.png cannot be read"),
    ],
)
def test_masks_that_do_not_fit_are_refused(what: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(VisqError, match=message):
        for pair in open_masks(bad(tmp_path, what)):
            pair.read(3)


def test_a_picture_shows_images_spread_over_all() -> None:
    """The first ones of a film are of one place."""
    drawing = MaskPicture(10)
    for index in range(10):
        drawing.add(*(np.full((2, 2), index, np.uint8) for _ in range(3)))
    assert [int(pixels[0, 0]) for pixels, _, _ in drawing.rows] == [0, 2, 5, 7]
    few = MaskPicture(2)
    for index in range(2):
        few.add(*(np.full((2, 2), index, np.uint8) for _ in range(3)))
    assert len(few.rows) == 2
