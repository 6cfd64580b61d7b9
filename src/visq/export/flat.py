"""An artifact as a flat file, which libvisq and the C++ engine load (docs/deploy.md)."""

from __future__ import annotations

import numpy as np

from visq._version import __version__
from visq.data.preprocess import Preprocess
from visq.errors import VisqError
from visq.export.runtimes import Run
from visq.integer.arithmetic import Floats
from visq.integer.program import Program
from visq.native.extension import _C, engine_isa
from visq.native.flat_file import aligned
from visq.runtime.bundle import Bundle
from visq.runtime.cpu.writer import Writer


def to_flat(program: Program, bundle: Bundle) -> bytes:
    """Returns the bytes of a flat file with what a caller must know: images, classes, names.

    Raises:
        VisqError: parameters do not fit the program, numbers are out of the engine's range, or the result is an image.
    """
    if program.output_map:
        raise VisqError(
            "libvisq returns one row of numbers for an image, and this network returns an image; use visq.load"
        )
    config = bundle.config
    preprocess = Preprocess.from_dict(config.preprocess)
    writer = Writer(program, bundle)
    writer.write()
    about = writer.file.about
    about.add("image", preprocess.channels, preprocess.image_size, preprocess.resize, preprocess.interpolation)
    about.add("normalize", np.array(preprocess.mean, np.float32), np.array(preprocess.std, np.float32))
    about.add("names", config.provenance.model, config.recipe.name, __version__)
    for name in config.classes or ():
        about.add("class", name)
    return writer.file.bytes().tobytes()


def open_flat(content: bytes, threads: int) -> tuple[Run, str]:
    """Returns a function that runs a flat file's program, and the level it runs on."""
    whole = aligned(len(content))
    whole[:] = np.frombuffer(content, np.uint8)
    engine = _C.Engine(engine_isa(), whole)

    def run(images: Floats) -> Floats:
        logits = np.empty((len(images), engine.output_width), np.float32)
        engine.run(np.ascontiguousarray(images), logits, threads)
        return logits

    return run, str(engine.isa)
