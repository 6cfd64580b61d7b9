"""An artifact in another format: made, run where runtimes are installed, and only then written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visq.errors import VisqError
from visq.export.runtimes import RuntimeAgreement, compare
from visq.files import replacing
from visq.integer.arithmetic import Floats
from visq.integer.program import Program
from visq.runtime.bundle import Bundle, read_bundle
from visq.runtime.engine import Engine

#: Random images that a file is run on when the caller brings none.
TRIAL_IMAGES = 2


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        agreement: one row for each installed runtime.
        real_images: whether the rows come from the caller's images; decisions on random images mean nothing.
    """

    path: Path
    bytes: int
    agreement: list[RuntimeAgreement]
    real_images: bool


def export(
    folder: Path | str,
    out: Path | str,
    *,
    format: str = "onnx",
    images: Floats | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes an artifact's program as `out` and compares it with the engine in every runtime that is installed.

    Arguments:
        format: one of `FORMATS`.
        images: [B, channels, size, size] float32, normalized; random ones by default.
    Raises:
        VisqError: not an artifact, no program, something without a form in that format, a runtime that refuses the
            file or returns nonsense. No file is left then.
    """
    out = Path(out)
    if format not in FORMATS:
        raise VisqError(f"format '{format}' is unknown; there are {', '.join(FORMATS)}")
    if out.exists() and not overwrite:
        raise VisqError(f"{out} exists; choose another name or pass --overwrite to replace it")
    engine = Engine(folder, threads=threads)
    bundle, program = read_bundle(folder), engine.program
    given = images is not None
    if images is None:
        shape = (TRIAL_IMAGES, program.channels, program.size, program.size)
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    content = FORMATS[format](program, bundle)
    agreement = compare(content, images, engine, engine.threads)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise VisqError(f"cannot write {out}: {error.strerror or error}; nothing was left there") from error
    return Exported(out, len(content), agreement, given)


def _onnx(program: Program, bundle: Bundle) -> bytes:
    from visq.export.program import to_onnx  # here, because it needs an extra

    content: bytes = to_onnx(program, bundle).SerializeToString()
    return content


#: Formats by name: (program, bundle) -> the file's bytes.
FORMATS: dict[str, Callable[[Program, Bundle], bytes]] = {"onnx": _onnx}
