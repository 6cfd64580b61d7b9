"""Runs an artifact's program on images of other sizes than the one it was made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from visq.artifact.program_checks import MAX_IMAGE_BYTES, image_bytes
from visq.errors import VisqError
from visq.integer.operations import Round, Scan
from visq.integer.program import Program
from visq.integer.resizing import resized
from visq.runtime.bundle import Bundle

#: Executors of other sizes that are kept; each holds its own copy of the weights.
KEPT = 4


class Sizes:
    """The executors of one program, by image size; each is made when its size is first asked for.

    Arguments:
        make: returns the executor of a program.
    """

    def __init__(self, program: Program, bundle: Bundle, make: Callable[[Program], Any]) -> None:
        self._program, self._bundle, self._make = program, bundle, make
        self._made: dict[tuple[int, int], Any] = {}

    def program(self, height: int, width: int) -> Program:
        """Returns the program for images of a size.

        Raises:
            VisqError: the network is made for one size, or an image of this one takes too much memory at once.
        """
        for what in site_positions(self._program, self._bundle):
            own = f"{self._program.height} x {self._program.width}"
            raise VisqError(f"the network was quantized for images of {own} pixels: {what}; another size needs its own")
        found = resized(self._program, height, width, lambda constant: self._bundle.constant(constant).shape)
        taken = image_bytes(found)
        if taken > MAX_IMAGE_BYTES:
            raise VisqError(
                f"an image of {height} x {width} pixels takes {taken:,} bytes at once, at most {MAX_IMAGE_BYTES:,}; "
                "cut it into tiles (`visq upscale` does)"
            )
        return found

    def of(self, height: int, width: int) -> Any:
        """Returns the executor for images of a size. Raises VisqError as `program` does."""
        size = (height, width)
        executor = self._made.pop(size, None) or self._make(self.program(height, width))
        self._made[size] = executor  # the newest is last
        while len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        return executor


def site_positions(program: Program, bundle: Bundle) -> Iterator[str]:
    """Yields the sites whose scales belong to the positions of one image size."""
    activations = [decl.site for decl in program.tensors.values() if decl.site is not None]
    for operation in program.operations:
        activations += [step.site for step in operation.body if isinstance(step, Round)]
        state = operation.source.h if isinstance(operation.source, Scan) else None
        if state is not None and bundle.state(state).step.size > 1:
            yield f"{state} has a scale for each step"
    for site in activations:
        codec = bundle.codec(site)
        if codec.step_token is not None or codec.zero_by_token:
            yield f"{site} has a scale for each token"
