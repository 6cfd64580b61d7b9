"""The functions of `import visq` with what Python programs have in their hands; wrong objects are one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import visq
from tests.analysis.conftest import image_folder as image_folder
from tests.analysis.conftest import images as images
from tests.analysis.conftest import model as model
from visq.analysis import EngineModel
from visq.data import Dataset
from visq.errors import VisqError
from visq.models import VisionMamba

RECIPE = "minmax-w8a8"


@pytest.fixture
def artifact(model: VisionMamba, image_folder: Path, tmp_path: Path) -> Path:
    visq.quantize(model, RECIPE, image_folder, samples=8, out=tmp_path / "artifact")
    return tmp_path / "artifact"


def everything(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = list(dataset.batches(8))
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def test_calibration_on_a_loader_gives_the_result_of_its_folder(
    model: VisionMamba, images: Dataset, artifact: Path, tmp_path: Path
) -> None:
    fresh = VisionMamba(model.config).eval()
    fresh.card = model.card  # type: ignore[assignment]
    pixels, labels = everything(images.subset(8, 0))
    results = []
    for data in (DataLoader(TensorDataset(pixels, labels), batch_size=3), pixels.numpy(), [*pixels]):
        network = VisionMamba(model.config).eval().requires_grad_(False)
        network.load_state_dict(fresh.state_dict())
        network.card = model.card  # type: ignore[assignment]
        results.append(visq.quantize(network, RECIPE, data)(pixels))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_evaluation_of_every_kind_of_model(artifact: Path, images: Dataset, image_folder: Path) -> None:
    engine, simulation = visq.load(artifact, backend="int"), visq.load(artifact)
    expected = visq.evaluate(simulation, image_folder)
    loader = DataLoader(TensorDataset(*everything(images)), batch_size=5)
    for given in (engine, EngineModel(engine), artifact, str(artifact)):
        for data in (images, loader, everything(images)):
            assert visq.evaluate(given, data).predictions.tolist() == expected.predictions.tolist()


def test_progress_is_told(model: VisionMamba, images: Dataset) -> None:
    told: list[tuple[str, int, int | None]] = []
    visq.quantize(model, RECIPE, images, batch_size=8, progress=lambda *args: told.append(args))
    count = len(model.stages())
    calibrating = [entry for entry in told if entry[0] == "calibrating"]
    assert calibrating == [("calibrating", done, count) for done in range(count + 1)]
    told.clear()
    visq.evaluate(model, images, batch_size=10, progress=lambda *args: told.append(args))
    assert told == [("evaluating", done, 24) for done in (0, 10, 20, 24)]


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda m, e, a: visq.quantize(e, RECIPE, np.zeros((2, 16, 16), np.uint8)), "an engine is quantized already"),
        (lambda m, e, a: visq.quantize(a, RECIPE, []), "is an artifact, which is quantized already"),
        (lambda m, e, a: visq.quantize("nonsense", RECIPE, []), "nonsense"),
        (lambda m, e, a: visq.quantize(torch.nn.Linear(1, 1), RECIPE, []), "a Linear is no model of visq"),
        (lambda m, e, a: visq.quantize(m, RECIPE, []), "no images are given"),
        (lambda m, e, a: visq.quantize(m, RECIPE, None), "images cannot be taken from an object of type NoneType"),
        (lambda m, e, a: visq.quantize(m, 3, "fashion-mnist"), "recipe"),
        (lambda m, e, a: visq.evaluate(None, "fashion-mnist"), "a NoneType is no model of visq"),
        (lambda m, e, a: visq.evaluate(m, torch.zeros(2, 1, 16, 16)), "has no labels"),
        (lambda m, e, a: visq.evaluate(m, [(torch.zeros(1, 16, 16), 9)]), r"labels of 9\.\.9 but 4 classes"),
        (lambda m, e, a: e.predict([]), "no images are given"),
        (lambda m, e, a: e.predict([None]), "an image cannot be an object of type NoneType"),
        (lambda m, e, a: e.predict(3), "images cannot be taken from an object of type int"),
        (lambda m, e, a: e.predict([np.zeros((2, 2, 2))]), "image 0"),
    ],
)
def test_wrong_objects(call: Any, message: str, model: VisionMamba, images: Dataset, artifact: Path) -> None:
    network = VisionMamba(model.config)
    network.card = model.card  # type: ignore[assignment]
    with pytest.raises(VisqError, match=message):
        call(network, visq.load(artifact, backend="int"), artifact)


def test_predict_takes_paths_images_and_arrays(artifact: Path, image_folder: Path) -> None:
    engine = visq.load(artifact, backend="int")
    paths = sorted(image_folder.rglob("*.png"))[:3]
    expected = engine.predict(paths)
    pillow = [Image.open(path) for path in paths]
    arrays = [np.asarray(image) for image in pillow]
    names, encoded = [str(path) for path in paths], [path.read_bytes() for path in paths]
    for several in (names, encoded, pillow, arrays, np.stack(arrays), iter(paths)):
        assert engine.predict(several) == expected
    for one in (paths[0], str(paths[0]), paths[0].read_bytes(), pillow[0], arrays[0]):
        assert engine.predict(one) == expected[:1]
