"""A page that runs networks on pictures: one HTML file with the library, the networks and a few pictures inside."""

from __future__ import annotations

import base64
import hashlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from visq._version import __version__
from visq.artifact import read_config
from visq.data import Dataset
from visq.errors import VisqError
from visq.export import export
from visq.files import write_text
from visq.web.compiled import compile_library

TEMPLATES = Path(__file__).parent / "templates"
#: Pictures to click on.
SAMPLES = 10


@dataclass(frozen=True)
class Page:
    """A written page.

    Attributes:
        networks: bytes of each network's flat file, as libvisq reads it.
    """

    path: Path
    bytes: int
    networks: tuple[int, ...]


def write_page(
    artifacts: Sequence[Path], out: Path, *, samples: Dataset | None = None, library: dict[str, Path] | None = None
) -> Page:
    """Writes the page, which needs no other file and loads none.

    Arguments:
        artifacts: of classifiers; the first one is what the others are compared with.
        out: the HTML file; it appears complete or not at all.
        samples: images with labels; the page shows the first of each class.
        library: a script for each level, as `compile_library` returns them.
    Raises:
        VisqError: an artifact does not become a flat file, or the library cannot be compiled.
    """
    if not artifacts:
        raise VisqError("a page needs an artifact at least")
    networks = [_network(folder) for folder in artifacts]
    library = library or compile_library()
    scripts = [path.read_text(encoding="utf-8") for path in library.values()]
    scripts.append((TEMPLATES / "page.js").read_text(encoding="utf-8"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html").render(
        title=read_config(artifacts[0]).provenance.model,
        version=__version__,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8").strip()),
        scripts=[{"text": Markup(script), "hash": hash_of(script)} for script in map(plain, scripts)],
        modules=[
            {"level": level, "base64": _base64(path.with_suffix(".wasm").read_bytes())}
            for level, path in library.items()
        ],
        networks=networks,
        samples=[] if samples is None else _samples(samples),
        source="" if samples is None else samples.name,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    return Page(out, len(text.encode()), tuple(network["bytes"] for network in networks))


def hash_of(script: str) -> str:
    """Returns what the page's content security policy allows: this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def plain(script: str) -> str:
    """A script as it may stand in a page; browsers make one character of every line's end."""
    found = script.replace("\r\n", "\n")
    if "</script" in found.lower() or "<!--" in found:
        raise VisqError("the compiled script would end the page's element; please report this")
    return found


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _network(folder: Path) -> dict[str, Any]:
    recipe = read_config(folder).recipe
    with tempfile.TemporaryDirectory(prefix="visq-page-") as room:
        file = Path(room) / "net.visq"
        export(folder, file, format="visq")
        content = file.read_bytes()
    unquantized = recipe.scope_name == "none"
    return {
        "title": "FP32" if unquantized else recipe.name,
        "note": "float32, as it was trained" if unquantized else f"scope {recipe.scope_name}: {recipe.title}",
        "bytes": len(content),
        "base64": _base64(content),
    }


def _samples(images: Dataset) -> list[dict[str, str]]:
    """The first image of each class, in the order of classes, as large as networks take it."""
    first: dict[int, int] = {}
    for index, label in enumerate(images.labels):
        first.setdefault(label, index)
    labels = sorted(first)[:SAMPLES]
    pixels, _ = next(iter(images.select([first[label] for label in labels]).pixel_batches(SAMPLES)))
    return [
        {"name": images.classes[label], "uri": _uri(image)} for label, image in zip(labels, pixels.numpy(), strict=True)
    ]


def _uri(pixels: np.ndarray) -> str:
    """An image [channels, height, width] uint8 as a PNG that stands in a page."""
    room = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(room, "PNG")
    return "data:image/png;base64," + _base64(room.getvalue())
