"""Runs a program on a GPU with generated Triton kernels, under a CUDA graph for each number of images.

Logits have the bits of `visq.runtime.oracle`. With TRITON_INTERPRET=1 the same kernels run in Triton's interpreter on
the CPU, which is how they are tested without a GPU.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visq.errors import VisqError
from visq.integer.arithmetic import Floats
from visq.integer.images import checked_images
from visq.integer.program import Program
from visq.runtime.bundle import Bundle
from visq.runtime.cuda.compiling import COMPILE_ERRORS, function
from visq.runtime.cuda.device import find_device
from visq.runtime.cuda.phases import Launch
from visq.runtime.cuda.plan import make_plan
from visq.runtime.cuda.source import IMAGES
from visq.runtime.cuda.text import Place

#: A packed sum with 0 in the machine code.
LOST_SUM = re.compile(r"\bVIADD\.16x2\b[^;]*,\s*0x0\s*;")
#: Numbers of images whose memory and graph are kept.
KEPT = 4


class CudaEngine:
    """The executor that runs a program on a GPU.

    Arguments:
        device: `cuda` or `cuda:<index>`; by default the current GPU.
        separate_memory: gives every tensor its own memory, so that `tensors` can read it after a run.

    Attributes:
        in_float: for each operation that runs in float32, the reason.
        kernels: how many kernels a run launches.
        bytes_an_image: memory of the tensors of an image.

    Raises:
        VisqError: there is no GPU for it (`find_device`), the engine lacks an operation, parameters do not fit the
            program, or they do not fit into the GPU's memory.
    """

    def __init__(
        self, program: Program, bundle: Bundle, device: str | None = None, separate_memory: bool = False
    ) -> None:
        self.device = find_device(device)
        self.program, self.separate_memory = program, separate_memory
        self.plan = make_plan(program, bundle, separate_memory)
        self.in_float, self.bytes_an_image = self.plan.in_float, self.plan.bytes_an_image
        self.kernels = len(self.plan.launches)
        self._decode = _decoder(program, bundle)
        self._parameters: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        self._lock = threading.Lock()
        self._last = 0
        try:
            self._arguments = [self._uploaded(launch) for launch in self.plan.launches]
        except torch.OutOfMemoryError as error:
            raise VisqError(
                f"the parameters do not fit into the memory of {self.device}; {_free(self.device)}"
            ) from error
        self.plan.launches = [launch.without_values() for launch in self.plan.launches]

    @property
    def name(self) -> str:
        """The device, or `interpreter`."""
        return "interpreter" if self.device.type == "cpu" else str(self.device)

    def profile(self, images: Floats, runs: int) -> dict[str, float]:
        """Returns the GPU's milliseconds for each image by kind of source, without the graph; {} without a GPU."""
        if self.device.type == "cpu" or not len(images):
            return {}
        self(images)
        found: dict[str, float] = {}
        with self._lock, torch.cuda.device(self.device):
            run = self._runs[len(images)]
            for _ in range(runs):
                marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(run.launches) + 1)]
                marks[0].record()
                for (_, launch), mark in zip(run.launches, marks[1:], strict=True):
                    launch()
                    mark.record()
                torch.cuda.synchronize(self.device)
                for launch_plan, start, end in zip(self.plan.launches, marks, marks[1:], strict=False):
                    found[launch_plan.kind] = found.get(launch_plan.kind, 0.0) + start.elapsed_time(end)
        return {kind: total / runs / len(images) for kind, total in found.items()}

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters in the GPU's memory; equal ones are held once, and 4-bit weights take half a byte."""
        return sum(x.numel() * x.element_size() for x in self._parameters.values())

    def __call__(self, images: Floats) -> Floats:
        """Returns results [B, *output_shape] float32 of normalized images [B, channels, height, width] float32.

        Raises:
            VisqError: as `visq.integer.images.checked_images`, or the images do not fit into the GPU's memory; the
                message names the number that would fit.
        """
        images = checked_images(self.program, images)
        if not len(images):
            return np.zeros((0, *self.program.output_shape), np.float32)
        with self._lock:
            found = self._decode(self._output(torch.from_numpy(images)).cpu().numpy())
        channels, *size = self.program.output_shape
        if not size:
            return found[:, 0]
        return np.ascontiguousarray(found.reshape(len(found), *size, channels).transpose(0, 3, 1, 2))

    def on_device(self, images: Tensor) -> Tensor:
        """Runs images [B, channels, height, width] float32 that are on the device, unchecked.

        Returns the rows of the output that are the result, [B, rows, width] float32 or codes: a view that the next run
        overwrites.
        """
        with self._lock:
            return self._output(images)

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Tensors of the last image by name, [rows, width] bytes or float32.

        Raises:
            VisqError: the engine was made without `separate_memory`, or has not run.
        """
        if not self.separate_memory or self._last not in self._runs:
            raise VisqError("the engine has its tensors only after a run, and when made with separate_memory=True")
        run = self._runs[self._last]
        return {name: run.view(self.plan.places[name])[-1].cpu().numpy() for name in self.program.tensors}

    def _output(self, images: Tensor) -> Tensor:
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            run = self._run(len(images))
            run.view(run.images).copy_(images.reshape(len(images), self.program.channels, -1))
            run()
        self._last = len(images)
        found = run.view(self.plan.places[self.program.output])
        return found if self.program.output_map else found[:, :1]

    def _run(self, batch: int) -> _Run:
        """Returns what runs so many images; the oldest of those kept is dropped for a new one."""
        if batch in self._runs:
            self._runs.move_to_end(batch)
            return self._runs[batch]
        while len(self._runs) >= KEPT:
            self._runs.popitem(last=False)
        for attempt in range(2):
            try:
                self._runs[batch] = _Run(self, batch)
                return self._runs[batch]
            except torch.OutOfMemoryError as error:
                if attempt == 0 and self._runs:
                    self._runs.clear()
                    torch.cuda.empty_cache()
                    continue
                raise self._too_many(batch) from error
        raise AssertionError

    def _too_many(self, batch: int) -> VisqError:
        """Returns the error for more images than fit; a tenth of the memory is left to the graph."""
        free, _ = torch.cuda.mem_get_info(self.device)
        fitting = int(0.9 * free) // max(self.bytes_an_image, 1)
        advice = f"use a batch of at most {fitting}" if fitting else "not even one image fits; use backend 'int'"
        need = batch * self.bytes_an_image / 2**20
        return VisqError(f"{batch} images need {need:.0f} MiB on {self.device}; {_free(self.device)}: {advice}")

    def _uploaded(self, launch: Launch) -> list[Place | Tensor]:
        return [x if isinstance(x, Place) else self._parameter(x) for x in launch.arguments]

    def _parameter(self, value: np.ndarray) -> Tensor:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._parameters:
            self._parameters[key] = torch.from_numpy(np.array(value)).to(self.device)
        return self._parameters[key]


class _Run:
    """The memory and the launches for so many images, and the graph of the launches."""

    def __init__(self, engine: CudaEngine, batch: int) -> None:
        self.engine, self.batch = engine, batch
        plan = engine.plan
        self.memory = torch.empty(plan.bytes_an_image * batch, dtype=torch.uint8, device=engine.device)
        self.images = plan.places[IMAGES]
        self.launches: list[tuple[str, Callable[[], object]]] = [
            (launch.name, self._bound(launch, arguments))
            for launch, arguments in zip(plan.launches, engine._arguments, strict=True)
        ]
        self.graph: Any = None

    def view(self, place: Place) -> Tensor:
        """Returns the memory of a place, [batch, rows, width]."""
        start = self.engine.plan.offsets[place.name] * self.batch
        content = self.memory[start : start + place.bytes_an_image * self.batch]
        content = content if place.coded else content.view(torch.float32)
        return content.view(self.batch, place.rows, place.width)

    def __call__(self) -> None:
        if self.engine.device.type != "cuda":
            self.launch()
        elif self.graph is None:
            self.launch(check=True)  # compiles; what runs now is also the result
            torch.cuda.synchronize(self.engine.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.launch()
            self.graph = graph
        else:
            self.graph.replay()

    def launch(self, check: bool = False) -> None:
        """Launches every kernel in turn; `check` reads what the compiler made of it."""
        for name, launch in self.launches:
            with _named(name):
                kernel = launch()
            if check:
                refuse_lost_sums(name, kernel)

    def _bound(self, launch: Launch, arguments: list[Place | Tensor]) -> Callable[[], object]:
        given: list[Any] = [self.view(x) if isinstance(x, Place) else x for x in arguments]
        grid, constants = launch.shape(self.batch)
        if launch.rows is not None:
            given.append(launch.rows * self.batch)
        run = function(launch.kernel)[grid]
        return lambda: run(*given, **constants, num_warps=launch.warps, enable_fp_fusion=False)


def refuse_lost_sums(operation: str, kernel: Any) -> None:
    """Refuses a compiled kernel in which the assembler has lost a number.

    CUDA 12.8 and 12.9 (Triton 3.6 to 3.9) may turn a sum of two pairs of 16-bit numbers into a sum with 0, where only
    one number of the result is used. Nothing else adds 0, so the instruction shows it. `kernels.unknown` avoids it.

    Raises:
        VisqError: the kernel has such a sum.
    """
    if re.search(r"\badd\.[su]16x2\b", kernel.asm["ptx"]) and LOST_SUM.search(kernel.asm["sass"]):
        raise VisqError(
            f"operation {operation}: the assembler that Triton brings gets a sum of its kernel wrong; "
            "install another version of Triton, or use backend 'int'"
        )


@contextlib.contextmanager
def _named(operation: str) -> Iterator[None]:
    """Names the operation whose kernel cannot be compiled for this GPU."""
    try:
        yield
    except COMPILE_ERRORS as error:
        first = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise VisqError(
            f"operation {operation}: Triton cannot compile its kernel for this GPU ({first}); use backend 'int'"
        ) from error


def _decoder(program: Program, bundle: Bundle) -> Callable[[np.ndarray], Floats]:
    """Returns what turns the output's rows into float32."""
    decl = program.tensors[program.output]
    if decl.site is None:
        return lambda x: x
    codec = bundle.codec(decl.site)
    rows = (np.arange(decl.rows) % (decl.length or decl.rows))[:: -1 if decl.reverse else 1]
    return lambda x: codec.decode(x, rows[: x.shape[1]])


def _free(device: torch.device) -> str:
    free, total = torch.cuda.mem_get_info(device)
    return f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB are free"
