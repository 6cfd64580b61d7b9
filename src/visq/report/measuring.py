"""What an artifact does with images, beside FP32: each model and each set of images is opened once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visq.analysis import diagnose
from visq.analysis.diagnostics import check_origin
from visq.analysis.evaluate import check_labels, limited
from visq.data import FASHION_MNIST_CLASSES, Dataset, open_dataset
from visq.errors import VisqError
from visq.models import load_model
from visq.models.family import image_classes, image_size, num_classes
from visq.progress import Progress
from visq.quant.site import named_sites
from visq.report.outputs import decisions, logits_of
from visq.report.settings import Settings
from visq.report.sites import site_sections
from visq.runtime import Engine

Row = dict[str, Any]
EMBEDDED = "fashion-mnist"


class Images:
    """Opens images and FP32 models and keeps FP32's logits, which several artifacts share."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings, self.progress = settings, progress
        self._exact: dict[tuple[str, str], NDArray[np.float32]] = {}

    def dataset(self, model: Any) -> Dataset | None:
        """Returns all images for a model; None where none are named and the embedded ones are not its own."""
        name = self.settings.data
        if name is None:
            if model.card.classes != FASHION_MNIST_CLASSES:
                return None
            name = EMBEDDED
        return open_dataset(name, model.card.preprocess, split="test", classes=model.card.classes)

    def original(self, model: Any) -> Any:
        """Returns the FP32 model of an artifact.

        Raises:
            VisqError: there is none of its name, or it is not the one the artifact was made of.
        """
        asked, made_of = self.settings.fp32, model.artifact.provenance.model
        name, checkpoint = (made_of, asked) if asked is not None and Path(asked).is_file() else (asked or made_of, None)
        found = load_model(name, checkpoint)
        size = image_size(model.config)
        if size is not None and size != image_size(found.config):
            found = load_model(name, checkpoint, geometry={"image_size": size})
        if _shape(found) != _shape(model):
            raise VisqError(f"{asked or name} is not the network that this {made_of} was made of")
        if not self.settings.any_fp32:
            check_origin(model, found)
        return found

    def exact(self, original: Any, images: Dataset) -> NDArray[np.float32]:
        """Returns FP32's logits [n, classes]."""
        key = (str(original.card.checkpoint_sha256), images.fingerprint())
        if key not in self._exact:
            self._exact[key] = logits_of(original, images, self.settings.batch_size)[0]
        return self._exact[key]


def _shape(model: Any) -> tuple[object, ...]:
    """Returns what a network and its quantized form share: sites, classes, size and channels of images."""
    config = model.config
    return [name for name, _ in named_sites(model)], num_classes(config), image_size(config), config.channels


def measure(name: str, model: Any, engine: Engine | None, images: Images, missing: list[Row]) -> Row:
    """Returns `decisions` and `errors`, None where they cannot be measured; `missing` receives the reasons.

    Raises:
        VisqError: images or an FP32 model that were asked for and do not fit.
    """
    nothing: Row = {"decisions": None, "errors": None}
    if image_classes(model.config) is None:
        why = "the network gives an image no class; visq eval measures it with --hr and --lr, or --masks"
        missing.append({"what": "accuracy, agreement and errors", "why": why, "option": None})
        return nothing
    every = images.dataset(model)
    if every is None:
        why = "no images are given, and none come with visq for this model"
        missing.append({"what": "accuracy, agreement and errors", "why": why, "option": "--data"})
        return nothing
    dataset = limited(every, images.settings.limit)
    original = original_or_none(model, images, missing)
    if dataset.labelled:
        check_labels(model, dataset)
    else:
        missing.append({"what": "accuracy", "why": f"{dataset.name} has no labels", "option": "--data"})
    images.progress.say(f"{name}: deciding on {len(dataset)} images")
    batch_size = images.settings.batch_size
    found, labels = logits_of(runner(model, engine), dataset, batch_size)
    exact = None if original is None else images.exact(original, dataset)
    seen = min(images.settings.site_images, len(dataset))
    images.progress.say(f"{name}: measuring every site on {seen} images")
    diagnosis = diagnose(model, every, fp32=original, images=seen, any_fp32=True)
    return {
        "decisions": decisions(found, exact, labels, dataset, model.card.classes),
        "errors": site_sections(model, diagnosis),
    }


def original_or_none(model: Any, images: Images, missing: list[Row]) -> Any:
    """Returns the FP32 model, or None with a reason where nobody asked for one."""
    try:
        return images.original(model)
    except VisqError as error:
        if images.settings.fp32 is not None:
            raise
        what = "FP32 beside it, agreement, errors by block and along the scan"
        missing.append({"what": what, "why": str(error), "option": "--fp32"})
        return None


def runner(model: Any, engine: Engine | None) -> Any:
    """Returns what computes the artifact's logits: its engine, or its simulation, which has the same bits."""
    if engine is None or engine.kernel == "oracle":
        return model
    return lambda batch: torch.from_numpy(engine(batch.numpy()))
