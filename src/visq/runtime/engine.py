"""Loads an artifact and runs it on integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from visq.artifact.schema import ArtifactConfig
from visq.data.preprocess import Preprocess
from visq.errors import VisqError
from visq.integer.arithmetic import Floats
from visq.integer.images import checked_images
from visq.integer.program import Program
from visq.native.extension import available
from visq.native.threads import checked_threads
from visq.runtime.batching import Batching
from visq.runtime.bundle import Bundle, read_bundle
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.oracle import Oracle
from visq.runtime.predicting import ImageLike, Prediction, Predictor
from visq.runtime.sizes import Sizes


class Executor(Protocol):
    """A function from normalized images [B, channels, size, size] float32 to logits [B, classes] float32."""

    in_float: dict[str, str]

    def __call__(self, images: Floats) -> Floats: ...


@dataclass(frozen=True)
class Options:
    """What an executor may be told; each backend refuses what does not fit it.

    Attributes:
        threads: processor threads.
        kernel: `oracle` or an instruction set; by default the fastest.
        device: a GPU.
    """

    threads: int
    kernel: str | None
    device: str | None


#: Images and a number of runs -> milliseconds for each image, by kind of operation.
Profile = Callable[[Floats, int], dict[str, float]]


class Engine:
    """The integer engine of one artifact.

    Attributes:
        folder, config: the artifact's folder and its config.
        preprocess: how an image becomes input.
        in_float: for each operation that runs in float32, the reason.
        kernel: the name of the executor: `cpp-<instruction set>`, `oracle` where the C++ extension is not installed,
            or `triton-<device>`.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        backend: str = "int",
        threads: int | None = None,
        kernel: str | None = None,
        device: str | None = None,
    ) -> None:
        self.folder, self.backend = Path(folder), checked_backend(backend)
        self.threads = checked_threads(threads)
        bundle = read_bundle(folder)
        self.config: ArtifactConfig = bundle.config
        program = self.config.program
        if program is None:
            why = self.config.no_program or "it was written by an older visq, quantize it again"
            raise VisqError(f"{folder} has no integer program: {why}; --backend sim runs it as a simulation")
        self.preprocess = Preprocess.from_dict(self.config.preprocess)
        self.program = program
        self._run: Executor
        options = Options(self.threads, kernel, device)
        self.kernel, self._run, self._profile = _EXECUTORS[backend](program, bundle, options)
        self.in_float = self._run.in_float
        self._sizes = Sizes(program, bundle, lambda other: _EXECUTORS[backend](other, bundle, options)[1])
        for size in self.config.deploy_sizes:
            self._sizes.of(*size)
        self._predictor = Predictor(self, self.preprocess, self.config.classes)

    def __call__(self, images: Floats) -> Floats:
        """Returns the logits [B, classes] float32 of normalized images [B, channels, size, size] float32.

        A network without positions takes images of any size [B, channels, height, width], and makes a program for each
        size when it first sees it. A network that returns images gives [B, channels, scale height, scale width].

        Raises:
            VisqError: the images have another shape or dtype, or values that are not finite or beyond
                `integer.images.LARGEST_PIXEL`.
        """
        return self._executor(images)(images)

    def _executor(self, images: Floats) -> Executor:
        """Returns the executor for the images' size. Raises VisqError where the network takes only another one."""
        program, shape = self.program, tuple(getattr(images, "shape", ()))
        if len(shape) != 4 or shape[1] != program.channels or shape[2:] == (program.height, program.width):
            return self._run  # which refuses other shapes
        try:
            executor: Executor = self._sizes.of(shape[2], shape[3])
        except VisqError as error:
            expected = f"{program.channels}, {program.height}, {program.width}"
            found = f"{images.dtype} {list(shape)}"
            raise VisqError(f"images must be float32 [batch, {expected}], not {found}: {error}") from error
        return executor

    def __repr__(self) -> str:
        name, recipe = self.config.provenance.model, self.config.recipe.name
        where = f"{self.kernel}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"<visq.Engine {self.folder}: {name} with {recipe}, {where}>"

    def profile(self, images: Floats, runs: int = 20) -> dict[str, float]:
        """Returns the milliseconds for each image, by kind of operation: thread time, or a GPU's.

        Takes the mean of `runs` runs after one to warm up. The oracle gives an empty dict.
        """
        return self._profile(images, runs)

    def predict(
        self, images: ImageLike | Iterable[ImageLike], top: int = 5, *, upright: bool = True, batch: int = 32
    ) -> list[list[Prediction]]:
        """Returns the `top` classes of every image, likeliest first.

        Arguments:
            images: one image or several: a path, a file's bytes, a PIL image, or pixels [H, W] or [H, W, 3] uint8.
            upright: turns photos by their EXIF orientation. `visq eval` does not, because published numbers do not.
            batch: images that run together.
        Raises:
            VisqError: an image cannot be read (the message names it), or no image is given.
        """
        found = []
        for predictions in self.predict_each(images, top, upright=upright, batch=batch):
            if isinstance(predictions, VisqError):
                raise predictions
            found.append(predictions)
        if not found:
            raise VisqError("no images are given")
        return found

    def predict_each(
        self, images: ImageLike | Iterable[ImageLike], top: int = 5, *, upright: bool = True, batch: int = 32
    ) -> Iterator[list[Prediction] | VisqError]:
        """Yields the predictions of `predict` image by image, or the error of an image that cannot be read.

        Memory does not grow with the number of images: `images` may be a generator.

        Raises:
            VisqError: the network returns images.
        """
        if self.program.output_map:
            larger = self.program.output_shape[1] >= self.program.height
            what = "returns images, not classes; `visq upscale`" if larger else "gives pixels a class; `visq segment`"
            raise VisqError(f"{self.folder}: this network {what} is for it")
        return self._predictor.each(images, top=top, upright=upright, batch=batch)

    def batching(self, *, batch: int = 16, delay: float = 0.0) -> Batching:
        """Returns an object that collects images from many threads and runs them in batches.

        Arguments:
            batch: images that run together, at most.
            delay: seconds that an image waits for others, at most. With 0 a batch is what came while the last one ran.
        """
        check = partial(checked_images, self.program)
        return Batching(self, check, self._predictor, batch=batch, delay=delay)


def load_engine(
    folder: Path | str, *, backend: str = "int", threads: int | None = None, device: str | None = None
) -> Engine:
    """Returns the integer engine of an artifact, as `visq.load(folder, backend=...)` does.

    Arguments:
        backend: `int`, the engine on the CPU, or `cuda`, the one on a GPU.
        threads: processor threads; all of them by default. Results do not depend on it.
        device: `cuda` or `cuda:<index>`, for the backend `cuda`; by default the current GPU.
    """
    return Engine(folder, backend=backend, threads=threads, device=device)


def checked_backend(name: str) -> str:
    """Returns the name of a backend. Raises VisqError where there is none of this name."""
    if name not in _EXECUTORS:
        raise VisqError(f"backend '{name}' is unknown; the engine has {' and '.join(_EXECUTORS)}")
    return name


def engine_backends() -> tuple[str, ...]:
    """Returns the names of the backends that run an artifact's program."""
    return tuple(_EXECUTORS)


def _on_cpu(program: Program, bundle: Bundle, options: Options) -> tuple[str, Executor, Profile]:
    """Returns an executor on the CPU, its name and what profiles it."""
    if options.device not in (None, "cpu"):
        raise VisqError(f"backend 'int' runs on the CPU, not on '{options.device}'; use backend 'cuda'")
    if options.kernel == "oracle" or (options.kernel is None and not available()):
        return "oracle", Oracle(program, bundle), lambda images, runs: {}
    engine = CpuEngine(program, bundle, threads=options.threads, isa=options.kernel)

    def profile(images: Floats, runs: int) -> dict[str, float]:
        engine(images)
        engine.enable_profile()
        for _ in range(runs):
            engine(images)
        found = engine.profile()
        engine.enable_profile(False)
        return {kind: 1e3 * seconds / runs / len(images) for kind, seconds in found.items()}

    return f"cpp-{engine.isa}", engine, profile


def _on_cuda(program: Program, bundle: Bundle, options: Options) -> tuple[str, Executor, Profile]:
    """Returns an executor on a GPU, its name and what profiles it."""
    from visq.runtime.cuda.device import find_device

    find_device(options.device)  # says what is missing before anything of it is imported
    from visq.runtime.cuda.engine import CudaEngine

    engine = CudaEngine(program, bundle, options.device)
    return f"triton-{engine.name}", engine, engine.profile


#: Makes an executor, its name and what profiles it, by the name of its backend.
_EXECUTORS: dict[str, Callable[[Program, Bundle, Options], tuple[str, Executor, Profile]]] = {
    "int": _on_cpu,
    "cuda": _on_cuda,
}
