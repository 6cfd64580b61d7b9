"""Options that several commands share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from visq.errors import VisqError
from visq.files import read_text

JsonTo = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON; - for standard output, alone.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads; all of them by default.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse images that cannot be read instead of skipping them.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Measure on at most so many images, spread over all.")
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images in a batch.")]
Samples = Annotated[int, typer.Option("--samples", help="Calibration images, drawn by the seed.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Draws the calibration images and all else that is random.")]
Data = Annotated[
    str, typer.Option("--data", help="`fashion-mnist` (embedded), a folder of class folders, or a tar of one.")
]

Device = Annotated[
    str, typer.Option("--device", help="Where PyTorch computes: cpu, cuda, cuda:1, or auto, a GPU if there is one.")
]

Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", help="Weights: .safetensors, or an official .pth (read without pickle).")
]
Ema = Annotated[bool, typer.Option("--ema", help="Take the averaged weights of a .pth.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", min=1, help="Pixels a side the model takes.")]
Stride = Annotated[int | None, typer.Option("--stride", min=1, help="Pixels between two patches.")]
Resize = Annotated[int | None, typer.Option("--resize", min=1, help="Shorter side before the centre crop.")]
Mean = Annotated[
    str | None, typer.Option("--mean", help="Subtracted from pixels in 0..1, by channel: 0.5 or 0.4,0.5,0.6.")
]
Std = Annotated[str | None, typer.Option("--std", help="Divides them after that.")]
Interpolation = Annotated[str | None, typer.Option("--interpolation", help="bicubic or bilinear.")]
Classes = Annotated[
    Path | None, typer.Option("--classes", help="The model's class names: a JSON list, or a line for each.")
]


@dataclass(frozen=True)
class ModelOptions:
    """What a user may say about an FP32 model beside its name."""

    checkpoint: Path | None = None
    ema: bool = False
    image_size: int | None = None
    stride: int | None = None
    resize: int | None = None
    mean: str | None = None
    std: str | None = None
    interpolation: str | None = None
    classes: Path | None = None

    def load(self, name: str) -> Any:
        """The FP32 model called `name`; raises VisqError."""
        from visq.models import load_model

        geometry = {key: getattr(self, key) for key in ("image_size", "stride") if getattr(self, key) is not None}
        return load_model(
            name,
            self.checkpoint,
            preprocess=self._preprocess(),
            classes=None if self.classes is None else read_classes(self.classes),
            geometry=geometry,
            ema=self.ema,
        )

    def refuse_for_artifact(self, folder: Path, model: Any) -> None:
        """Raises VisqError when an option contradicts an artifact, which fixes all of this."""
        from visq.models.family import image_size

        size = image_size(model.config)
        if self.image_size not in (None, size):
            raise VisqError(
                f"{folder} was calibrated for images of {size} pixels, not {self.image_size}: its position embedding "
                "and static scales are made for that size; quantize the model again at the size you need"
            )
        given = [key for key, value in vars(self).items() if value and key != "image_size"]
        if given:
            raise VisqError(
                f"--{given[0].replace('_', '-')} is for models by name; {folder} is an artifact, which has its own"
            )

    def _preprocess(self) -> dict[str, Any]:
        values: dict[str, Any] = {"resize": self.resize, "interpolation": self.interpolation}
        for name in ("mean", "std"):
            text = getattr(self, name)
            values[name] = None if text is None else _numbers(name, text)
        return {key: value for key, value in values.items() if value is not None}


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise VisqError(f"--{name} takes numbers with commas between them, not {text!r}") from None


def read_classes(path: Path) -> list[str]:
    """Returns class names from lines, a JSON list, or a JSON object `{"0": name}` or `{"0": [identity, name]}`.

    Raises VisqError when the file cannot be read or is something else.
    """
    try:
        text = read_text(path)
        names = json.loads(text) if text.lstrip().startswith(("[", "{")) else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise VisqError(f"--classes {path} cannot be read: {why}; give a JSON list or a name a line") from error
    if isinstance(names, dict):
        if set(names) != {str(i) for i in range(len(names))}:
            raise VisqError(f"--classes {path}: the keys of a JSON object must be 0, 1, 2, ...; give a list instead")
        names = [names[str(i)] for i in range(len(names))]
    if not names:
        raise VisqError(f"--classes {path} names nothing; give a JSON list or a name a line")
    return [str(name[-1] if isinstance(name, list) and name else name) for name in names]


def integers(option: str, text: str, least: int = 0) -> list[int]:
    """Returns [0, 1, 2] for `0,1,2`; raises VisqError for anything but whole numbers of at least `least`."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise VisqError(f"{option} takes whole numbers with commas between them, not {text!r}") from None
    if min(found) < least:
        raise VisqError(f"{option} takes numbers of at least {least}, not {min(found)}")
    return found


def names(option: str, text: str) -> list[str]:
    """Returns [`a`, `b`] for `a,b`; raises VisqError where no name is left."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise VisqError(f"{option} names nothing; give one or more with commas between them")
    return found
