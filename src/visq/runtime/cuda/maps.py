"""Writes register 0 of the sources that read other rows of a tensor: maps, windows, samples, joined sequences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from visq.integer.operations import (
    AveragePool,
    Bilinear,
    Concat,
    Constant,
    EnterWindows,
    LeaveWindows,
    Mean,
    MergeSamples,
    Patches,
    PixelShuffle,
    Sample,
    Transpose,
    half,
)
from visq.integer.resampling import parts, taps
from visq.runtime.cuda.source import Source, Windows
from visq.runtime.cuda.text import At, Text


def concat(source: Source, step: Concat, text: Text, at: At) -> str:
    """A table says for each row which tensor it comes from (the constants are one more), and from which row there."""
    tensors: list[str] = []
    constants: list[np.ndarray] = []
    which: list[int] = []
    rows: list[int] = []
    for part in step.parts:
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


def transpose(source: Source, step: Transpose, text: Text, at: At) -> str:
    token = text.let(f"{at.token} % {step.height} * {step.width} + {at.token} // {step.height}")
    row = text.let(f"{at.row} - {at.token} + {token}")
    return source.read(text, step.input, replace(at, row=row, token=token))


def enter_windows(source: Source, step: EnterWindows, text: Text, at: At) -> str:
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


def leave_windows(source: Source, step: LeaveWindows, text: Text, at: At) -> str:
    side, window = step.side, step.window
    across = -(-side // window)
    y, x = text.let(f"{at.token} // {side}"), text.let(f"{at.token} % {side}")
    which = text.let(f"{y} // {window} * {across} + {x} // {window}")
    token = text.let(f"{which} * {window**2} + {y} % {window} * {window} + {x} % {window}")
    row = text.let(f"{at.row} // {side * side} * {across**2 * window**2} + {token}")
    return source.read(text, step.input, replace(at, row=row, token=token))


def mean(source: Source, step: Mean, text: Text, at: At) -> str:
    rows = source.body.places[step.input].rows
    total = text.zeros(at.has)
    with text.loop(f"for i in range({rows}):"):
        there = replace(at, row=text.let(f"{at.row} * {rows} + i"), token=text.let(f"{at.token} * 0 + i"))
        x = source.read(text, step.input, there)
        text.line(f"{total} = {total} + {x}")
    return text.let(f"tl.math.div_rn({total}, {rows}.0)")


def patches(source: Source, step: Patches, text: Text, at: At) -> str:
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


def pixel_shuffle(source: Source, step: PixelShuffle, text: Text, at: At) -> str:
    height, width = source.map_size(step.input)
    scale, across = step.scale, width * step.scale
    y, x = text.let(f"{at.token} // {across}"), text.let(f"{at.token} % {across}")
    token = text.let(f"{y} // {scale} * {width} + {x} // {scale}")
    column = text.let(f"{at.column} * {scale**2} + {y} % {scale} * {scale} + {x} % {scale}")
    row = text.let(f"{at.row} // {source.operation.rows} * {height * width} + {token}")
    inside = text.let(str(at.has))
    return source.read(text, step.input, At(row, token, column, inside, inside))


def sample(source: Source, step: Sample, text: Text, at: At) -> str:
    rows, columns = half(step.height), half(step.width)
    y, x = text.let(f"{at.token} // {columns}"), text.let(f"{at.token} % {columns}")
    if step.by_columns:
        y, x = text.let(f"{at.token} % {rows}"), text.let(f"{at.token} // {rows}")
    y, x = text.let(f"2 * {y} + {step.row}"), text.let(f"2 * {x} + {step.column}")
    there = text.let(f"{at.has_row} & ({y} < {step.height}) & ({x} < {step.width})")
    token = text.let(f"{y} * {step.width} + {x}")
    row = text.let(f"{at.row} // {source.operation.rows} * {step.height * step.width} + {token}")
    value = source.read(text, step.input, replace(at, row=row, token=token, has_row=there))
    return text.let(f"tl.where({there}, {value}, 0.0)")


def merge_samples(source: Source, step: MergeSamples, text: Text, at: At) -> str:
    rows, columns = half(step.height), half(step.width)
    y, x = text.let(f"{at.token} // {step.width}"), text.let(f"{at.token} % {step.width}")
    image, which = text.let(f"{at.row} // {source.operation.rows}"), text.let(f"{y} % 2 + {x} % 2 * 2")
    found = text.let(f"tl.zeros(({at.has}).shape, tl.float32)")
    for index, name in enumerate(step.inputs):
        token = text.let(f"{x} // 2 * {rows} + {y} // 2" if index % 2 else f"{y} // 2 * {columns} + {x} // 2")
        there = text.let(f"{at.has_row} & ({which} == {index})")
        row = text.let(f"{image} * {rows * columns} + {token}")
        value = source.read(text, name, replace(at, row=row, token=token, has_row=there))
        found = text.let(f"tl.where({there}, {value}, {found})")
    return found


def bilinear(source: Source, step: Bilinear, text: Text, at: At) -> str:
    (height, width), target = source.map_size(step.input), source.map_size(step.like)
    image = text.let(f"{at.row} // {source.operation.rows}")
    places = (text.let(f"{at.token} // {target[1]}"), text.let(f"{at.token} % {target[1]}"))
    ends, shares = [], []
    for place, length, count in zip(places, (height, width), target, strict=True):
        low, high, share = taps(length, count)
        ends.append([text.vector(side.astype(np.int32), place, at.has_row) for side in (low, high)])
        shares.append([text.vector(side, place, at.has_row, "0.0") for side in (np.float32(1) - share, share)])

    def between(values: list[str], share: list[str]) -> str:
        return text.let(f"{values[0]} * {share[0]} + {values[1]} * {share[1]}")

    rows = []
    for y in ends[0]:
        tokens = [text.let(f"{y} * {width} + {x}") for x in ends[1]]
        ats = [replace(at, row=text.let(f"{image} * {height * width} + {t}"), token=t) for t in tokens]
        rows.append(between([source.read(text, step.input, there) for there in ats], shares[1]))
    return between(rows, shares[0])


def average_pool(source: Source, step: AveragePool, text: Text, at: At) -> str:
    height, width = source.map_size(step.input)
    image = text.let(f"{at.row} // {source.operation.rows}")
    places = (text.let(f"{at.token} // {step.width}"), text.let(f"{at.token} % {step.width}"))
    cuts = [np.array(parts(*sides), np.int32) for sides in ((height, step.height), (width, step.width))]
    (top, bottom), (left, right) = (
        [text.vector(ends, place, at.has_row, str(index)) for index, ends in enumerate(cut.T)]
        for place, cut in zip(places, cuts, strict=True)
    )
    tall, wide = (int((cut[:, 1] - cut[:, 0]).max()) for cut in cuts)
    total = text.zeros(at.has)
    with text.loop(f"for i in range({tall * wide}):"):
        y, x = text.let(f"{top} + i // {wide}"), text.let(f"{left} + i % {wide}")
        there = text.let(f"{at.has_row} & ({y} < {bottom}) & ({x} < {right})")
        token = text.let(f"{y} * {width} + {x}")
        row = text.let(f"{image} * {height * width} + {token}")
        value = source.read(text, step.input, replace(at, row=row, token=token, has_row=there))
        text.line(f"{total} = {total} + tl.where({there}, {value}, 0.0)")
    return text.let(f"tl.math.div_rn({total}, (({bottom} - {top}) * ({right} - {left})).to(tl.float32))")
