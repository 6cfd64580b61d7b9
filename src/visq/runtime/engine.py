"""An artifact, ready to run on integers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from visq.artifact.schema import CONFIG_FILE, ArtifactConfig
from visq.data.decode import UnreadableImage
from visq.data.preprocess import Preprocess
from visq.data.sources import read_file
from visq.errors import VisqError
from visq.integer.arithmetic import Floats
from visq.integer.program import Program
from visq.native.extension import available
from visq.native.threads import checked_threads
from visq.runtime.bundle import Bundle, read_bundle
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.oracle import Oracle


class Executor(Protocol):
    """Runs a program: images [B, channels, size, size] float32, normalized -> logits [B, classes] float32."""

    in_float: dict[str, str]

    def __call__(self, images: Floats) -> Floats: ...


@dataclass(frozen=True)
class Prediction:
    """A class, its name (its number where classes have no names) and its probability."""

    index: int
    name: str
    probability: float


class Engine:
    """The integer engine of one artifact.

    Attributes:
        config: of the artifact.
        preprocess: how an image becomes input.
        in_float: why, by operation, of everything that runs in float32 because the recipe or a codebook leaves it so.
        kernel: what runs it: `cpp-<instruction set>`, or `oracle` where the C++ extension is not installed.
    """

    def __init__(self, folder: Path | str, *, threads: int | None = None, kernel: str | None = None) -> None:
        bundle = read_bundle(folder)
        self.config: ArtifactConfig = bundle.config
        program = self.config.program
        if program is None:
            why = self.config.no_program or "it was written by an older visq"
            raise VisqError(f"{folder} has no integer program: {why}; use --backend sim, or quantize it again")
        self.preprocess = Preprocess.from_dict(self.config.preprocess)
        if (self.preprocess.channels, self.preprocess.image_size) != (program.channels, program.size):
            raise VisqError(f"{Path(folder) / CONFIG_FILE}: preprocess does not belong to the program")
        self.program = program
        self.threads = checked_threads(threads)
        self._run: Executor
        self.kernel, self._run = _executor(kernel, program, bundle, self.threads)
        self.in_float = self._run.in_float
        self._transparent_said = False

    def __call__(self, images: Floats) -> Floats:
        """Logits [B, classes] float32 of images [B, channels, size, size] float32, normalized.

        Raises:
            VisqError: another shape or dtype, or values that are not finite.
        """
        return self._run(images)

    def profile(self, images: Floats, runs: int = 20) -> dict[str, float]:
        """Milliseconds of thread time an image takes by kind of operation, over `runs` runs; empty for the oracle."""
        if not isinstance(self._run, CpuEngine):
            return {}
        self(images)
        self._run.enable_profile()
        for _ in range(runs):
            self(images)
        found = self._run.profile()
        self._run.enable_profile(False)
        return {kind: 1e3 * seconds / runs / len(images) for kind, seconds in found.items()}

    def predict(
        self, images: Sequence[Path | str | bytes], top: int = 5, *, upright: bool = True
    ) -> list[list[Prediction]]:
        """Returns the `top` classes of every image, likeliest first.

        Arguments:
            images: paths of image files, or the bytes of such files.
            upright: turns photos as their EXIF orientation asks for. `visq eval` does not, as published numbers do not.
        Raises:
            VisqError: a file that cannot be read as an image, named.
        """
        pixels = np.stack([self._pixels(image, upright) for image in images])
        logits = self(self.preprocess.normalize_array(pixels))
        shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
        probabilities = shifted / shifted.sum(1, keepdims=True)
        names = self.config.classes
        return [
            [Prediction(int(i), str(i) if names is None else names[i], float(row[i])) for i in np.argsort(-row)[:top]]
            for row in probabilities
        ]

    def _pixels(self, image: Path | str | bytes, upright: bool) -> np.ndarray:
        what = "the image" if isinstance(image, bytes) else str(image)
        try:
            encoded = image if isinstance(image, bytes) else read_file(Path(image))
            found = self.preprocess.prepare(encoded, upright=upright)
        except OSError as error:
            raise VisqError(f"{what} cannot be read: {error.strerror or error}") from error
        except UnreadableImage as error:
            raise VisqError(f"{what} cannot be read as an image: {error}") from error
        if found.transparent and not self._transparent_said:
            self._transparent_said = True
            warnings.warn(f"{what} has transparent pixels, which are shown over white (said once)", stacklevel=4)
        return found.pixels


def load_engine(folder: Path | str, *, threads: int | None = None) -> Engine:
    """The integer engine of an artifact; what `visq.load(folder, backend="int")` returns.

    Arguments:
        threads: processor threads; all of them by default. Results do not depend on it.
    """
    return Engine(folder, threads=threads)


def _executor(kernel: str | None, program: Program, bundle: Bundle, threads: int) -> tuple[str, Executor]:
    """`kernel`: `oracle`, an instruction set, or None for the fastest there is."""
    if kernel == "oracle" or (kernel is None and not available()):
        return "oracle", Oracle(program, bundle)
    engine = CpuEngine(program, bundle, threads=threads, isa=kernel)
    return f"cpp-{engine.isa}", engine
