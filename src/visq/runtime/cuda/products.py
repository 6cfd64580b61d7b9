"""Writes register 0 of products and convolutions into a kernel, in each of their forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from visq.integer.forms import (
    FloatConv1d,
    FloatConv2d,
    FloatLinear,
    IntegerConv1d,
    IntegerConv2d,
    IntegerLinear,
    WideLinear,
)
from visq.integer.operations import Conv1d, Conv2d, DenseConv2d, Linear
from visq.runtime.cuda.source import Source, Windows
from visq.runtime.cuda.text import At, Text

#: Elements of a sum that one step of a product multiplies.
CHUNK = 64


def linear(source: Source, step: Linear, text: Text, at: At) -> str:
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
    total = text.zeros(at.has)
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


def conv1d(source: Source, step: Conv1d, text: Text, at: At) -> str:
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
    weight, total = text.parameter(form.weight), text.zeros(at.has)
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


def conv2d(source: Source, step: Conv2d, text: Text, at: At) -> str:
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
    weight, total, area = text.parameter(form.weight), text.zeros(at.has), step.kernel**2
    with text.loop(f"for i in range({area}):"):
        token, inside = windows.position(text, at.token, "i", str(at.has_row))
        row = text.let(f"{image} * {place.rows} + {token}")
        value = source.read(text, step.input, At(row, token, at.column, inside, at.has_column))
        w = text.load(f"{weight} + {at.column} * {area} + i", at.has_column, "0.0")
        text.line(f"{total} = {total} + tl.where({inside}, {value}, 0.0) * {w}")
    return text.let(f"{total} + {text.vector(form.bias, at.column, at.has_column, '0.0')}")


def dense_conv2d(source: Source, step: DenseConv2d, text: Text, at: At) -> str:
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
    weight, total = text.parameter(np.ascontiguousarray(form.weight.T)), text.zeros(at.has)
    with text.loop(f"for i in range({depth}):"):
        token, inside = windows.position(text, at.token, text.let(f"i % {area}"), str(at.has_row))
        row = text.let(f"{image} * {place.rows} + {token}")
        value = source.read(text, step.input, At(row, token, text.let(f"i // {area}"), inside, None))
        w = text.load(f"{weight} + i * {columns} + {at.column}", at.has_column, "0.0")
        text.line(f"{total} = {total} + tl.where({inside}, {value}, 0.0) * {w}")
    return text.let(f"{total} + {text.vector(form.bias, at.column, at.has_column, '0.0')}")
