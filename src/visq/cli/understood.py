"""Says in one line what visq understood of a model: which images it takes and which classes it tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visq.cli.output import Output


def say_understood(output: Output, card: Any) -> None:
    """Prints the images and classes of a model, and what was chosen in its checkpoint."""
    output.say(understood(card))
    if card.notes:
        output.say(f"checkpoint: {'; '.join(card.notes)}")


def understood(card: Any) -> str:
    """Returns size, patch, stride, resize, mean, std and classes of a `ModelCard` as one line."""
    config, transform = card.config, card.preprocess
    colour = "grey" if transform.channels == 1 else "RGB"
    size = transform.image_size
    parts = [
        f"{colour} images of {size} x {size}, cut from a shorter side of {transform.resize} "
        f"({transform.interpolation})",
        f"mean {_numbers(transform.mean)}, std {_numbers(transform.std)}",
    ]
    patches = [
        f"{title} {getattr(config, name)}"
        for title, name in (("patch", "patch_size"), ("stride", "stride"), ("tokens", "num_tokens"))
        if hasattr(config, name)
    ]
    classes = getattr(config, "num_classes", None)
    if patches:
        parts.append(", ".join(patches))
    if classes is not None:
        parts.append(f"{classes} classes ({_names(card.classes)})")
    return "understood: " + "; ".join(parts)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _names(classes: Sequence[str] | None) -> str:
    if classes is None:
        return "without names"
    return ", ".join(" ".join(name.split())[:30] for name in classes[:3]) + (", ..." if len(classes) > 3 else "")
