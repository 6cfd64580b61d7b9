"""Writes register 0 of an operation into a kernel: one function for each source, and for each form of a product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from visq.integer.consistency import Pair, map_size
from visq.integer.forms import (
    FloatConv1d,
    FloatConv2d,
    FloatLinear,
    Form,
    IntegerConv1d,
    IntegerConv2d,
    IntegerLinear,
    WideLinear,
)
from visq.integer.operations import (
    Concat,
    Constant,
    Conv1d,
    Conv2d,
    DenseConv2d,
    EnterWindows,
    LeaveWindows,
    Linear,
    Mean,
    Operation,
    Patches,
    PixelShuffle,
    Rows,
    Transpose,
)
from visq.runtime.bundle import Bundle
from visq.runtime.cuda.bodies import Body, read, shifted, unsupported
from visq.runtime.cuda.text import At, Place, Text

#: Elements of a sum that one step of a product multiplies.
CHUNK = 64

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


def add_source(source: Source, text: Text, at: At, offset: int) -> str:
    """Writes register 0 at the kernel's rows, from channel `offset` on, and returns its name."""
    make = _SOURCES.get(type(source.operation.source))
    if make is None:
        raise unsupported(source.operation, f"source {source.operation.source.kind}")
    return make(source, source.operation.source, text, shifted(text, at, offset))


def _concat(source: Source, parts: Concat, text: Text, at: At) -> str:
    """A table says for each row which tensor it comes from (the constants are one more), and from which row there."""
    tensors: list[str] = []
    constants: list[np.ndarray] = []
    which: list[int] = []
    rows: list[int] = []
    for part in parts.parts:
        if isinstance(part, Constant):
            which.append(-1)
            rows.append(len(constants))
            constants.append(source.bundle.constant(part).reshape(-1))
        else:
            name, first, count = part
            if name not in tensors:
                tensors.append(name)
            which += [tensors.index(name)] * count
            rows += range(first, first + count)
    row = text.load(f"{text.parameter(np.array(rows, np.int32))} + {at.token}", at.has_row)
    owner = text.load(f"{text.parameter(np.array(which, np.int32))} + {at.token}", at.has_row)
    image = text.let(f"{at.row} // {source.operation.rows}")
    found = text.let(f"tl.zeros(({at.has}).shape, tl.float32)")
    for index, name in enumerate(tensors):
        there = text.let(f"{at.has_row} & ({owner} == {index})")
        theirs = text.let(f"{image} * {source.body.places[name].rows} + {row}")
        x = source.read(text, name, At(theirs, row, at.column, there, at.has_column))
        found = text.let(f"tl.where({there}, {x}, {found})")
    if constants:
        there = text.let(f"{at.has_row} & ({owner} == -1)")
        name, width = text.parameter(np.stack(constants)), source.operation.width
        x = text.load(f"{name} + {row} * {width} + {at.column}", f"({there}) & ({at.has_column})", "0.0")
        found = text.let(f"tl.where({there}, {x}, {found})")
    return found


def _transpose(source: Source, step: Transpose, text: Text, at: At) -> str:
    token = text.let(f"{at.token} % {step.height} * {step.width} + {at.token} // {step.height}")
    row = text.let(f"{at.row} - {at.token} + {token}")
    return source.read(text, step.input, replace(at, row=row, token=token))


def _enter_windows(source: Source, step: EnterWindows, text: Text, at: At) -> str:
    """Row y * window + x of a window is a position of the map; the last windows may reach beyond it."""
    side, window = step.side, step.window
    across = -(-side // window)
    which, inner = text.let(f"{at.token} // {window**2}"), text.let(f"{at.token} % {window**2}")
    y = text.let(f"{which} // {across} * {window} + {inner} // {window}")
    x = text.let(f"{which} % {across} * {window} + {inner} % {window}")
    there = text.let(f"{at.has_row} & ({y} < {side}) & ({x} < {side})")
    token = text.let(f"{y} * {side} + {x}")
    row = text.let(f"{at.row} // {source.operation.rows} * {side * side} + {token}")
    value = source.read(text, step.input, replace(at, row=row, token=token, has_row=there))
    return text.let(f"tl.where({there}, {value}, 0.0)")


def _leave_windows(source: Source, step: LeaveWindows, text: Text, at: At) -> str:
    side, window = step.side, step.window
    across = -(-side // window)
    y, x = text.let(f"{at.token} // {side}"), text.let(f"{at.token} % {side}")
    which = text.let(f"{y} // {window} * {across} + {x} // {window}")
    token = text.let(f"{which} * {window**2} + {y} % {window} * {window} + {x} % {window}")
    row = text.let(f"{at.row} // {side * side} * {across**2 * window**2} + {token}")
    return source.read(text, step.input, replace(at, row=row, token=token))


def _mean(source: Source, step: Mean, text: Text, at: At) -> str:
    rows = source.body.places[step.input].rows
    total = text.fresh()
    text.line(f"{total} = tl.zeros(({at.has}).shape, tl.float32)")
    with text.loop(f"for i in range({rows}):"):
        there = replace(at, row=text.let(f"{at.row} * {rows} + i"), token=text.let(f"{at.token} * 0 + i"))
        x = source.read(text, step.input, there)
        text.line(f"{total} = {total} + {x}")
    return text.let(f"tl.math.div_rn({total}, {rows}.0)")


@dataclass(frozen=True)
class Windows:
    """The windows of a map, in row-major order; each pair is along the height and along the width."""

    size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)

    @property
    def across(self) -> int:
        """How many windows lie beside each other."""
        return (self.size[1] + 2 * self.padding[1] - self.kernel[1]) // self.stride[1] + 1

    def position(self, text: Text, token: str, at: str, mask: str) -> tuple[str, str]:
        """Writes the position in the map of element `at` of a window's kernel, and whether it is inside."""
        places = []
        corner = (f"{token} // {self.across}", f"{token} % {self.across}")
        inside = [f"({mask})"]
        for axis, element in enumerate((f"{at} // {self.kernel[1]}", f"{at} % {self.kernel[1]}")):
            place = text.let(f"{corner[axis]} * {self.stride[axis]} - {self.padding[axis]} + {element}")
            inside.append(f"({place} >= 0) & ({place} < {self.size[axis]})")
            places.append(place)
        return text.let(f"{places[0]} * {self.size[1]} + {places[1]}"), text.let(" & ".join(inside))


def _patches(source: Source, step: Patches, text: Text, at: At) -> str:
    image = step.input is None
    place = source.image if step.input is None else source.body.places[step.input]
    size = source.image_size if step.input is None else source.map_size(step.input)
    windows = Windows(size, (step.patch,) * 2, (step.stride,) * 2, (step.padding,) * 2)
    area = step.patch**2
    token, inside = windows.position(text, at.token, text.let(f"{at.column} % {area}"), str(at.has))
    batch, channel = text.let(f"{at.row} // {source.operation.rows}"), text.let(f"{at.column} // {area}")
    if image:
        row = text.let(f"{batch} * {place.rows} + {channel}")
        return text.load(f"{text.place(place)} + {row} * {place.width} + {token}", inside, "0.0")
    row = text.let(f"{batch} * {place.rows} + {token}")
    pixel = source.read(text, str(step.input), At(row, token, channel, inside, inside))
    return text.let(f"tl.where({inside}, {pixel}, 0.0)")


def _pixel_shuffle(source: Source, step: PixelShuffle, text: Text, at: At) -> str:
    height, width = source.map_size(step.input)
    scale, across = step.scale, width * step.scale
    y, x = text.let(f"{at.token} // {across}"), text.let(f"{at.token} % {across}")
    token = text.let(f"{y} // {scale} * {width} + {x} // {scale}")
    column = text.let(f"{at.column} * {scale**2} + {y} % {scale} * {scale} + {x} % {scale}")
    row = text.let(f"{at.row} // {source.operation.rows} * {height * width} + {token}")
    inside = text.let(str(at.has))
    return source.read(text, step.input, At(row, token, column, inside, inside))


# --- products


def _linear(source: Source, step: Linear, text: Text, at: At) -> str:
    form = source.form
    if isinstance(form, FloatLinear):
        return _float_linear(source, step, form, text, at)
    assert isinstance(form, IntegerLinear | WideLinear)
    place = source.body.places[step.input]
    columns, depth = form.weight.shape
    chunk, padded = _chunks(depth)
    weight = np.zeros((columns, padded), np.int8)
    weight[:, :depth] = form.weight
    where = f"{at.row}, {at.column}, {at.has_row}, {at.has_column}, {depth}, {padded}, {chunk}"
    x = text.place(place)
    if isinstance(form, WideLinear):
        table = np.zeros(1, np.int32) if form.table is None else form.table.astype(np.int32)
        parameters = (weight, table, form.zero.astype(np.int32), form.factor.astype(np.int32))
        names = ", ".join(text.parameter(x) for x in parameters)
        total = text.let(f"k.wide_product({x}, {names}, {where}, {form.table is not None})")
    else:
        packs = chunk == CHUNK and weight.min(initial=0) >= -8 and weight.max(initial=0) <= 7
        name = text.parameter(pack_nibbles(weight, chunk) if packs else weight)
        total = text.let(f"k.{'nibbles' if packs else 'bytes'}_product({x}, {name}, {where})")
        zero = form.zero.astype(np.int32)
        if zero.size > 1 or zero[0] != 128:
            sums = text.vector(weight.sum(1, dtype=np.int32), at.column, at.has_column)
            total = text.let(f"{total} + (128 - {text.vector(zero, at.token, at.has_row)}) * {sums}")
    value = text.let(f"{total}.to(tl.float32) * {text.vector(form.scale, at.column, at.has_column, '0.0')}")
    if form.token is not None:
        value = text.let(f"{value} * {text.vector(form.token, at.token, at.has_row, '0.0')}")
    return text.let(f"{value} + {text.vector(form.bias, at.column, at.has_column, '0.0')}")


def _chunks(depth: int) -> tuple[int, int]:
    """Returns how many elements of a sum are multiplied at once, and the sum's length in whole steps."""
    chunk = CHUNK if depth > CHUNK // 2 else CHUNK // 2
    return chunk, -(-depth // chunk) * chunk


def pack_nibbles(weight: np.ndarray, chunk: int) -> np.ndarray:
    """Returns weights [N, K] of 4 bits as [N, K / 2] int8, in the order of `kernels.nibbles_product`."""
    halves = weight.astype(np.int16).reshape(len(weight), -1, 2, chunk // 2)
    packed = (halves[:, :, 0] & 15) | ((halves[:, :, 1] & 15) << 4)
    return packed.reshape(len(weight), -1).astype(np.uint8).view(np.int8)


def _float_linear(source: Source, step: Linear, form: FloatLinear, text: Text, at: At) -> str:
    columns, depth = form.weight.shape
    weight = text.parameter(np.ascontiguousarray(form.weight.T))
    total = text.fresh()
    text.line(f"{total} = tl.zeros(({at.has}).shape, tl.float32)")
    with text.loop(f"for i in range({depth}):"):
        x = source.read(text, step.input, replace(at, column="i", has_column=None))
        w = text.load(f"{weight} + i * {columns} + {at.column}", at.has_column, "0.0")
        text.line(f"{total} = {total} + {x} * {w}")
    return text.let(f"{total} + {text.vector(form.bias, at.column, at.has_column, '0.0')}")


# --- depthwise convolutions


def _scaled(form: IntegerConv1d | IntegerConv2d, total: str, text: Text, at: At) -> str:
    value = text.let(f"{total}.to(tl.float32) * {text.vector(form.scale, at.column, at.has_column, '0.0')}")
    return text.let(f"{value} + {text.vector(form.bias, at.column, at.has_column, '0.0')}")


def _integer_operands(form: IntegerConv1d | IntegerConv2d, text: Text) -> str:
    return f"{text.parameter(form.weight.astype(np.int8))}, {text.parameter(form.zero.astype(np.int32))}"


def _conv1d(source: Source, step: Conv1d, text: Text, at: At) -> str:
    form, operation = source.form, source.operation
    length, width, ahead = step.length or operation.rows, operation.width, step.ahead or 0
    t = at.token if step.length is None else text.let(f"{at.token} % {length}")
    x = text.place(source.body.places[step.input])
    if isinstance(form, IntegerConv1d):
        taps = form.weight.shape[1]
        names = f"{x}, {_integer_operands(form, text)}, {at.row}, {t}, {at.column}, {at.has}"
        return _scaled(form, text.let(f"k.taps({names}, {length}, {width}, {taps}, {ahead}, {step.reverse})"), text, at)
    assert isinstance(form, FloatConv1d)
    taps = form.weight.shape[1]
    weight, total = text.parameter(form.weight), text.fresh()
    text.line(f"{total} = tl.zeros(({at.has}).shape, tl.float32)")
    with text.loop(f"for i in range({taps}):"):
        away = taps - 1 - ahead
        shift = text.let(f"{away} - i" if step.reverse else f"i - {away}")
        inside = text.let(f"({at.has_row}) & ({t} + {shift} >= 0) & ({t} + {shift} < {length})")
        row, token = text.let(f"{at.row} + {shift}"), text.let(f"{at.token} + {shift}")
        there = At(row, token, at.column, inside, at.has_column)
        value = text.let(f"tl.where({inside}, {source.read(text, step.input, there)}, 0.0)")
        w = text.load(f"{weight} + {at.column} * {taps} + i", at.has_column, "0.0")
        text.line(f"{total} = {total} + {value} * {w}")
    return text.let(f"{total} + {text.vector(form.bias, at.column, at.has_column, '0.0')}")


def _conv2d(source: Source, step: Conv2d, text: Text, at: At) -> str:
    form, operation = source.form, source.operation
    place = source.body.places[step.input]
    windows = Windows(source.map_size(step.input), (step.kernel,) * 2, padding=(step.padding,) * 2)
    image = text.let(f"{at.row} // {operation.rows}")
    if isinstance(form, IntegerConv2d):
        names = f"{text.place(place)}, {_integer_operands(form, text)}, {image}, {at.token}, {at.column}, {at.has}"
        height, width = windows.size
        sizes = f"{height}, {width}, {windows.across}, {operation.width}, {step.kernel}, {step.padding}"
        return _scaled(form, text.let(f"k.windows({names}, {sizes})"), text, at)
    assert isinstance(form, FloatConv2d)
    weight, total, area = text.parameter(form.weight), text.fresh(), step.kernel**2
    text.line(f"{total} = tl.zeros(({at.has}).shape, tl.float32)")
    with text.loop(f"for i in range({area}):"):
        token, inside = windows.position(text, at.token, "i", str(at.has_row))
        row = text.let(f"{image} * {place.rows} + {token}")
        value = source.read(text, step.input, At(row, token, at.column, inside, at.has_column))
        w = text.load(f"{weight} + {at.column} * {area} + i", at.has_column, "0.0")
        text.line(f"{total} = {total} + tl.where({inside}, {value}, 0.0) * {w}")
    return text.let(f"{total} + {text.vector(form.bias, at.column, at.has_column, '0.0')}")


def _dense_conv2d(source: Source, step: DenseConv2d, text: Text, at: At) -> str:
    form, operation = source.form, source.operation
    place = source.body.places[step.input]
    windows = Windows(source.map_size(step.input), step.kernel, step.stride, step.padding)
    image = text.let(f"{at.row} // {operation.rows}")
    if isinstance(form, FloatLinear):
        return _float_windows(source, step, form, windows, text, at)
    assert isinstance(form, IntegerLinear)
    columns, depth = form.weight.shape
    chunk, padded = _chunks(depth)
    weight = np.zeros((columns, padded), np.int8)
    by_position = form.weight.reshape(columns, place.width, *step.kernel).transpose(0, 2, 3, 1)
    weight[:, :depth] = by_position.reshape(columns, depth)
    zero, sums = int(form.zero[0]), text.parameter(weight.sum(1, dtype=np.int32))
    names = f"{text.place(place)}, {text.parameter(weight)}, {image}, {at.token}, {at.column}, {at.has_row}"
    around = ", ".join(map(str, (*step.stride, *step.padding)))
    height, width = windows.size
    sizes = (
        f"{height}, {width}, {place.width}, {windows.across}, {step.kernel[1]}, {around}, {depth}, {padded}, {chunk}"
    )
    zero_name = text.load(text.parameter(np.array([zero], np.int32)), None)
    total = text.let(f"k.window_product({names}, {at.has_column}, {zero_name}, {sizes})")
    total = text.let(f"{total} + (128 - {zero_name}) * {text.load(f'{sums} + {at.column}', at.has_column)}")
    value = text.let(f"{total}.to(tl.float32) * {text.vector(form.scale, at.column, at.has_column, '0.0')}")
    return text.let(f"{value} + {text.vector(form.bias, at.column, at.has_column, '0.0')}")


def _float_windows(source: Source, step: DenseConv2d, form: FloatLinear, windows: Windows, text: Text, at: At) -> str:
    """Writes the float32 convolution, added in the order of the weight: channels, then positions."""
    columns, depth = form.weight.shape
    place, area = source.body.places[step.input], step.kernel[0] * step.kernel[1]
    image = text.let(f"{at.row} // {source.operation.rows}")
    weight, total = text.parameter(np.ascontiguousarray(form.weight.T)), text.fresh()
    text.line(f"{total} = tl.zeros(({at.has}).shape, tl.float32)")
    with text.loop(f"for i in range({depth}):"):
        token, inside = windows.position(text, at.token, text.let(f"i % {area}"), str(at.has_row))
        row = text.let(f"{image} * {place.rows} + {token}")
        value = source.read(text, step.input, At(row, token, text.let(f"i // {area}"), inside, None))
        w = text.load(f"{weight} + i * {columns} + {at.column}", at.has_column, "0.0")
        text.line(f"{total} = {total} + tl.where({inside}, {value}, 0.0) * {w}")
    return text.let(f"{total} + {text.vector(form.bias, at.column, at.has_column, '0.0')}")


def _rows(source: Source, step: Rows, text: Text, at: At) -> str:
    raise AssertionError("a body never reads register 0 of a source that fills nothing")


#: Writes register 0, by the type of the source. A scan has kernels of its own (`scans`).
_SOURCES: dict[type, Callable[[Source, Any, Text, At], str]] = {
    Patches: _patches,
    Linear: _linear,
    Conv1d: _conv1d,
    Conv2d: _conv2d,
    DenseConv2d: _dense_conv2d,
    PixelShuffle: _pixel_shuffle,
    Transpose: _transpose,
    EnterWindows: _enter_windows,
    LeaveWindows: _leave_windows,
    Mean: _mean,
    Concat: _concat,
    Rows: _rows,
}
