"""An artifact in another format: made, run where runtimes are installed, and only then written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visq.errors import VisqError
from visq.export.flat import open_flat, to_flat
from visq.export.runtimes import Open, RuntimeAgreement, compare, installed
from visq.files import replacing
from visq.integer.arithmetic import Floats
from visq.integer.program import Program
from visq.native.extension import available
from visq.runtime.bundle import Bundle, read_bundle
from visq.runtime.engine import Engine
from visq.runtime.sizes import Sizes

#: Random images that a file is run on when the caller brings none.
TRIAL_IMAGES = 2


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        agreement: one row for each installed runtime.
        checked: what was checked of the file, beside `agreement`.
        real_images: whether the rows come from the caller's images; decisions on random images mean nothing.
    """

    path: Path
    bytes: int
    agreement: list[RuntimeAgreement]
    real_images: bool
    checked: str = ""


def export(
    folder: Path | str,
    out: Path | str,
    *,
    format: str = "onnx",
    images: Floats | None = None,
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes an artifact's program as `out` and compares it with the engine in every runtime that is installed.

    Arguments:
        format: one of `FORMATS`.
        images: [B, channels, size, size] float32, normalized; random ones by default.
        size: (height, width) of the images that a network takes which returns images; by default those of calibration.
    Raises:
        VisqError: not an artifact, no program, a size that the network has not, something without a form in that
            format, a runtime that refuses the file or returns nonsense. No file is left then.
    """
    out = Path(out)
    if format not in FORMATS:
        raise VisqError(f"format '{format}' is unknown; there are {', '.join(FORMATS)}")
    if out.exists() and not overwrite:
        raise VisqError(f"{out} exists; choose another name or pass --overwrite to replace it")
    engine = Engine(folder, threads=threads)
    bundle, program = read_bundle(folder), engine.program
    if size is not None:
        if not program.output_map:
            raise VisqError("a size is for networks that return images; a classifier's images are resized to its own")
        program = Sizes(program, bundle, lambda other: other).of(*size)
    given = images is not None
    if images is None:
        shape = (TRIAL_IMAGES, program.channels, program.height, program.width)
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    made = FORMATS[format]
    content = made.write(program, bundle)
    agreement = compare(content, images, engine, engine.threads, made.runtimes())
    if made.exact and any(row.sqnr_db != math.inf for row in agreement):
        raise VisqError("the file's logits are not the engine's; please report this")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise VisqError(f"cannot write {out}: {error.strerror or error}; nothing was left there") from error
    return Exported(out, len(content), agreement, given, made.checked if agreement or not made.exact else "")


def _onnx(program: Program, bundle: Bundle) -> bytes:
    from visq.export.program import to_onnx  # here, because it needs an extra

    content: bytes = to_onnx(program, bundle).SerializeToString()
    return content


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        write: (program, bundle) -> the file's bytes.
        runtimes: those here that run it.
        exact: whether they must give the engine's bits.
        checked: what `write` has checked.
    """

    write: Callable[[Program, Bundle], bytes]
    runtimes: Callable[[], dict[str, Open]]
    exact: bool
    checked: str


FORMATS = {
    "onnx": Format(_onnx, installed, False, "checked by onnx.checker"),
    "visq": Format(to_flat, lambda: {"visq": open_flat} if available() else {}, True, "logits are the engine's bits"),
}
