"""Declares the training configuration, its keys and their units, and reads it from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from visq.data import Preprocess
from visq.errors import VisqError
from visq.files import read_text
from visq.strict_yaml import read_yaml

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelConfig(_Strict):
    """Which network is trained, and from which weights.

    Attributes:
        name: a registered name.
        geometry: sizes that replace those of the name; with `vim` they give the network its sizes.
        checkpoint: a `.safetensors` or official `.pth` file to start from (fine-tuning); None starts at random weights.
        backbone: a classifier, a packaged name or a file, whose layers the backbone of a network with a head takes.
        interpolate_positions: the checkpoint is of another image size, so its position embedding is resampled.
    """

    name: str = "vim"
    geometry: dict[str, Any] = {}
    checkpoint: str | None = None
    backbone: str | None = None
    interpolate_positions: bool = False

    @model_validator(mode="after")
    def _something_to_interpolate(self) -> ModelConfig:
        if self.interpolate_positions and self.checkpoint is None:
            raise ValueError("interpolate_positions needs a checkpoint")
        if self.backbone is not None and self.checkpoint is not None:
            raise ValueError("backbone and checkpoint both say where to start")
        return self


class DataConfig(_Strict):
    """Where images come from, and how they become input.

    Attributes:
        train, eval: data as `open_dataset` takes them.
        classes: class names in the order of the labels; None orders the class folders.
        holdout: number of training images that are left out of training and evaluated on in the place of `eval`, so
            that settings can be tried without looking at the test set.
        train_size: side at which training images are kept, larger than the model's [pixels]; crops of
            `augment.resized_crop` then have enough pixels.
        preprocess: values of `Preprocess.from_dict`.
    """

    train: str
    eval: str
    classes: tuple[str, ...] | None = None
    holdout: Count = 0
    train_size: AtLeastOne | None = None
    preprocess: dict[str, Any]

    @field_validator("preprocess")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        try:
            return Preprocess.from_dict(values).to_dict()
        except VisqError as error:
            raise ValueError(str(error)) from error


class AugmentConfig(_Strict):
    """Random changes of training images, drawn anew for each image; zero turns one off.

    Attributes:
        crop_padding: width of the zeros put around the image before a crop of the original size [pixels].
        resized_crop: range of the fraction of the area that is cut out and enlarged; None keeps the whole image.
        flip: probability of a horizontal flip.
        rotate, shear: largest angle [degrees].
        zoom: largest change of size; 0.1 is +-10 %.
        brightness, contrast, saturation: largest relative change.
        erase: probability that a rectangle is filled with noise.
        erase_area: largest part of the image's area that it takes; the smallest is 0.02.
        mixup, cutmix: alpha of the Beta distribution.
        mix_probability: probability that a batch is mixed, by one of the two.
    """

    crop_padding: Count = 0
    resized_crop: tuple[float, float] | None = None
    flip: Rate = 0.0
    rotate: NonNegative = 0.0
    shear: NonNegative = 0.0
    zoom: Fraction = 0.0
    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    erase: Rate = 0.0
    erase_area: Annotated[float, Field(gt=0.02, le=1.0)] = 0.2
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    mix_probability: Rate = 1.0

    @field_validator("resized_crop")
    @classmethod
    def _ordered(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("needs 0 < low <= high <= 1")
        return scale


class MasksConfig(_Strict):
    """Says how networks that give each pixel a class are trained.

    `data.train` and `data.eval` are then as `open_masks` takes them. Of `augment`, flip, brightness, contrast and
    saturation apply.

    Attributes:
        crop: height and width of what a step sees of an image [pixels].
        scale: smallest and largest factor by which an image is resized before it is cropped.
        ignore: class number that does not count, such as that of unlabelled pixels.
        weighting: power p of the loss's factor for each class, (share of the pixels)^-p; 0 for none.
    """

    crop: tuple[AtLeastOne, AtLeastOne]
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    ignore: Annotated[int, Field(ge=0, le=255)] | None = None
    weighting: Rate = 0.0

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError("needs low <= high")
        return scale


#: Keys of `augment` that images with masks may have.
_WITH_MASKS = {"flip", "brightness", "contrast", "saturation"}


class TrainConfig(_Strict):
    """Everything a training run depends on.

    Attributes:
        epochs, batch_size: length of the run and images in a step.
        lr: learning rate after `warmup_epochs` of linear warm-up.
        min_lr: learning rate at the end of the cosine that follows.
        weight_decay: decay of matrices; 1-D parameters, A_log, D, cls_token and pos_embed have none.
        betas: AdamW's.
        grad_clip: largest norm of the gradient; 0 for none.
        label_smoothing: share of a target that is spread over all classes.
        drop_path: largest probability that a block is skipped.
        ema_decay: decay of the weights' moving average, approached as (1 + step) / (10 + step); 0 for none.
        masks: for networks that give each pixel a class; None for classifiers of images.
        precision: type of the forward pass; weights are float32 in both.
        compile: runs the model through torch.compile.
        cuda_graph: on a GPU, captures the whole step in a CUDA graph, where that is possible.
        device: `cpu`, `cuda`, `cuda:1` or `auto`, which takes a GPU where there is one (`visq.device`).
        save: the weights that `model.safetensors` gets, averaged or raw.
        average_with: checkpoints of the same network, such as those of earlier cycles, whose weights are averaged with
            these in equal parts (stochastic weight averaging, arXiv 1803.05407).
        eval_every, checkpoint_every: distance between two [epochs]; the last epoch always does both.
    """

    model: ModelConfig
    data: DataConfig
    epochs: AtLeastOne
    batch_size: AtLeastOne = 128
    lr: Positive = 1e-3
    min_lr: NonNegative = 1e-5
    warmup_epochs: NonNegative = 1.0
    weight_decay: NonNegative = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: NonNegative = 1.0
    label_smoothing: Fraction = 0.0
    drop_path: Fraction = 0.0
    ema_decay: Fraction = 0.999
    augment: AugmentConfig = AugmentConfig()
    masks: MasksConfig | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    cuda_graph: bool = True
    device: str = "auto"
    seed: Count = 0
    eval_every: AtLeastOne = 1
    checkpoint_every: AtLeastOne = 1
    save: Literal["ema", "raw"] = "ema"
    average_with: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.save == "ema" and self.ema_decay == 0:
            raise ValueError("save: ema needs ema_decay > 0")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        size, kept = self.preprocess.image_size, self.data.train_size
        if kept is not None and kept < size:
            raise ValueError(f"data.train_size {kept} is below the model's image_size {size}")
        if kept is not None and kept > size and self.augment.resized_crop is None:
            raise ValueError(f"data.train_size {kept} needs augment.resized_crop, which brings images to {size} pixels")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leaves nothing of {self.epochs} epochs")
        if self.masks is not None:
            self._consistent_with_masks()
        return self

    def _consistent_with_masks(self) -> None:
        """Raises ValueError for keys that mean nothing where images have masks."""
        changed = {name for name, value in self.augment if value != AugmentConfig.model_fields[name].default}
        wrong = sorted(changed - _WITH_MASKS)
        if wrong:
            raise ValueError(f"augment.{wrong[0]} does not change masks; known there: {', '.join(sorted(_WITH_MASKS))}")
        if self.data.train_size is not None:
            raise ValueError("data.train_size is for labels; masks.crop says what a step sees")
        if self.data.classes is None:
            raise ValueError("masks need data.classes, the names in the order of their numbers")

    @property
    def preprocess(self) -> Preprocess:
        """Transform of evaluation images, and of training images unless `data.train_size` is given."""
        return Preprocess.from_dict(self.data.preprocess)

    @property
    def train_preprocess(self) -> Preprocess:
        """Transform of training images before augmentation: `preprocess`, or the whole image at `train_size`."""
        size = self.data.train_size
        return self.preprocess if size is None else replace(self.preprocess, image_size=size, resize=size)

    def to_yaml(self) -> str:
        """Returns YAML that `load_config` reads back to an equal configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a training YAML.

    Arguments:
        overrides: `key.sub=value` each, with the value in YAML; they replace what the file says.
    Raises:
        VisqError: the file, a key or an override is wrong, named.
    """
    try:
        values = read_yaml(read_text(Path(path)))
    except OSError as error:
        raise VisqError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise VisqError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise VisqError(f"{path}: a training configuration is a mapping of keys")
    for override in overrides:
        _put(values, override)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise VisqError(f"{path}: {describe(error)}") from error


def differences(stored: str, config: TrainConfig) -> list[str]:
    """Returns the keys in which `config` differs from one stored as YAML, each with both values.

    Keys that the stored one lacks count as their defaults.

    Raises:
        VisqError: the stored configuration cannot be understood.
    """
    try:
        old = TrainConfig.model_validate(read_yaml(stored))
    except (ValidationError, yaml.YAMLError) as error:
        raise VisqError(f"the stored configuration cannot be read ({' '.join(str(error).split())})") from error
    before, after = _flat(old.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    keys = sorted(before.keys() | after.keys())
    return [f"{k}: {before.get(k)} there, {after.get(k)} here" for k in keys if before.get(k) != after.get(k)]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def describe(error: ValidationError) -> str:
    """Returns one line that says which keys are wrong and why."""
    lines = []
    for entry in error.errors():
        key = ".".join(str(part) for part in entry["loc"]) or "configuration"
        message = "unknown key" if entry["type"] == "extra_forbidden" else entry["msg"].removeprefix("Value error, ")
        lines.append(f"{key}: {message}")
    return "; ".join(lines)


def _put(values: dict[str, Any], override: str) -> None:
    """Sets one `a.b=value` in nested dictionaries; VisqError for any other form."""
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise VisqError(f"override {override!r} is not of the form key.sub=value")
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise VisqError(f"override {override!r}: {' '.join(str(error).split())}") from error
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise VisqError(f"override {override!r}: {part} has no keys below it")
        values = inner
    values[path[-1]] = value
