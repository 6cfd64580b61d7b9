"""An artifact as a flat file, which libvisq and the C++ engine load (docs/deploy.md)."""

from __future__ import annotations

import numpy as np

from visq._version import __version__
from visq.data.preprocess import Preprocess
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
        VisqError: parameters do not fit the program, or numbers are out of the engine's range.
    """
    config = bundle.config
    preprocess = Preprocess.from_dict(config.preprocess)
    writer = Writer(program, bundle)
    writer.write()
    about = writer.file.about
    # A network that returns an image takes one as it is: nothing is resized or cut.
    sizes = (program.height, 0) if program.output_map else (preprocess.image_size, preprocess.resize)
    about.add("image", preprocess.channels, *sizes, preprocess.interpolation)
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
        found = np.empty((len(images), engine.output_width), np.float32)
        engine.run(np.ascontiguousarray(images), found, threads)
        channels, *size = engine.output_map
        return found.reshape(-1, *size, channels).transpose(0, 3, 1, 2) if channels else found

    return run, str(engine.isa)
