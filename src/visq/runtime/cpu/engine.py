"""Runs a program on the C++ engine: parameters are packed once, then images run without Python in between.

Results have the bits of `visq.runtime.oracle`, on every instruction set, for every thread count and batch.
"""

from __future__ import annotations

import numpy as np

from visq.errors import VisqError
from visq.integer.arithmetic import Floats
from visq.integer.images import checked_images
from visq.integer.program import Program
from visq.native.extension import _C, engine_isa, engine_isas, has_engine_isa
from visq.native.threads import checked_threads
from visq.runtime.bundle import Bundle
from visq.runtime.cpu.writer import Writer


class CpuEngine:
    """The executor that runs a program on the C++ engine.

    Arguments:
        threads: threads that a run may use; by default as many processors as this process may keep busy.
        isa: one of `engine_isas()`, or `EMULATED`; by default VISQ_ISA or the fastest.
        separate_memory: gives every tensor its own memory, so that `tensors` can read it after a run.

    Attributes:
        in_float: for each operation that runs in float32, the reason.

    Raises:
        VisqError: parameters do not fit the program, numbers are out of the engine's range, this machine lacks the
            instruction set, or the number of threads makes no sense.
    """

    def __init__(
        self,
        program: Program,
        bundle: Bundle,
        threads: int | None = None,
        isa: str | None = None,
        separate_memory: bool = False,
    ) -> None:
        self.separate_memory = separate_memory
        self.threads = checked_threads(threads)
        isa = isa or engine_isa()
        if not has_engine_isa(isa):
            raise VisqError(f"instruction set {isa!r} is not available here; available: {', '.join(engine_isas())}")
        try:
            writer = Writer(program, bundle, separate_memory)
            self._indices = writer.write()
            self._engine = _C.Engine(isa, writer.file.bytes())
        except ValueError as error:
            raise VisqError(f"the program does not fit its parameters: {error}") from error
        self.program, self.in_float = writer.program, writer.in_float

    @property
    def isa(self) -> str:
        return str(self._engine.isa)

    @property
    def parameter_bytes(self) -> int:
        """Bytes held by packed parameters.

        A 4-bit weight takes half a byte (a whole one on AMX), an 8-bit weight one byte, or two when the kernel
        multiplies 16-bit values.
        """
        return int(self._engine.parameter_bytes)

    def __call__(self, images: Floats) -> Floats:
        """Returns results [B, *output_shape] float32 of normalized images [B, channels, height, width] float32.

        Raises:
            VisqError: as `visq.integer.images.checked_images`.
        """
        images = checked_images(self.program, images)
        channels, *size = self.program.output_shape
        out = np.empty((len(images), *size, channels), np.float32)
        self._engine.run(images, out, checked_threads(self.threads))
        return np.ascontiguousarray(out.transpose(0, 3, 1, 2)) if size else out

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Tensors of the last image by name, [rows, width] bytes or float32.

        Raises:
            VisqError: the engine was made without `separate_memory`.
        """
        if not self.separate_memory:
            raise VisqError("the engine has its tensors only when it was made with separate_memory=True")
        found = {}
        for name, index in self._indices.items():
            decl = self.program.tensors[name]
            value = np.empty((decl.rows, decl.width), np.float32 if decl.site is None else np.uint8)
            self._engine.read_tensor(index, value.view(np.uint8))
            found[name] = value
        return found

    @property
    def bodies(self) -> dict[str, str]:
        """Row instructions by operation, with a bar between chains. A chain keeps its values in registers."""
        return dict(zip((op.name for op in self.program.operations), self._engine.bodies(), strict=True))

    def enable_profile(self, on: bool = True) -> None:
        """Starts to measure time from zero, or stops."""
        self._engine.enable_profile(on)

    def profile(self) -> dict[str, float]:
        """Returns seconds, summed over threads, by kind of source; the time of its bodies is under `<kind> body`."""
        return dict(self._engine.profile())

    def phase_times(self, threads: int) -> list[tuple[str, int, float]]:
        """Returns the phases of an image: kind of the first operation, tasks on `threads` threads, thread time.

        The time is in seconds, since `enable_profile`.
        """
        return [(kind, int(tasks), float(seconds)) for kind, tasks, seconds in self._engine.phase_times(threads)]
