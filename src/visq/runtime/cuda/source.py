"""Holds what register 0 of an operation is written from."""

from __future__ import annotations

from dataclasses import dataclass

from visq.integer.consistency import Pair, map_size
from visq.integer.forms import Form
from visq.integer.operations import Operation
from visq.runtime.bundle import Bundle
from visq.runtime.cuda.bodies import Body, read
from visq.runtime.cuda.text import At, Place, Text

#: The normalized images of a run, [batch, channels, height * width].
IMAGES = "the images"


@dataclass(frozen=True)
class Source:
    """What a source is written from.

    Attributes:
        image: the place of the images.
        image_size: their height and width.
    """

    body: Body
    form: Form
    image: Place
    image_size: Pair

    @property
    def operation(self) -> Operation:
        return self.body.operation

    @property
    def bundle(self) -> Bundle:
        return self.body.bundle

    def map_size(self, name: str) -> Pair:
        """Returns the height and width of the map that a tensor holds."""
        return map_size(self.body.program.tensors[name])

    def read(self, text: Text, name: str, at: At) -> str:
        """Writes float32 values of a tensor of the program."""
        return read(text, self.body.places[name], self.body.codes_of(name), at)


@dataclass(frozen=True)
class Windows:
    """The windows of a map, in row-major order; each pair is along the height and along the width."""

    size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)

    @property
    def across(self) -> int:
        """Returns how many windows lie beside each other."""
        return (self.size[1] + 2 * self.padding[1] - self.kernel[1]) // self.stride[1] + 1

    def position(self, text: Text, token: str, at: str, mask: str) -> tuple[str, str]:
        """Writes the position in the map of element `at` of a window's kernel, and whether it is inside."""
        places = []
        corner = (f"{token} // {self.across}", f"{token} % {self.across}")
        inside = [f"({mask})"]
        at = text.let(f"k.unknown({at})")
        for axis, element in enumerate((f"{at} // {self.kernel[1]}", f"{at} % {self.kernel[1]}")):
            place = text.let(f"{corner[axis]} * {self.stride[axis]} - {self.padding[axis]} + {element}")
            inside.append(f"({place} >= 0) & ({place} < {self.size[axis]})")
            places.append(place)
        return text.let(f"{places[0]} * {self.size[1]} + {places[1]}"), text.let(" & ".join(inside))
