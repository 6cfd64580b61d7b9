"""Cuts operations into steps: what a Triton function computes for a tile of rows, or for a scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from visq.integer.operations import Attention, DenseConv2d, Linear, Load, Operation, Rotate, Scan, inputs
from visq.runtime.cuda import lane_scans
from visq.runtime.cuda.attention import attention_text, tiles, warps
from visq.runtime.cuda.bodies import Body, Piece, Stored, Values, read
from visq.runtime.cuda.scans import channels_of, scan_text
from visq.runtime.cuda.source import Source
from visq.runtime.cuda.sources import add_source
from visq.runtime.cuda.text import At, Place, Text, begin_tile

#: Most channels of a tile.
COLUMNS = 64


@dataclass(frozen=True)
class Step:
    """Describes what one Triton function computes.

    Attributes:
        name: the operation, for errors.
        kind: the kind of source, for profiles; what follows a source in steps of its own is its `body`.
        arguments: places and parameters, in order.
        writes: names of the places that it writes.
    """

    name: str
    kind: str
    arguments: tuple[Place | np.ndarray, ...]
    writes: frozenset[str]

    @property
    def reads(self) -> frozenset[str]:
        """Names of the places that it reads."""
        return frozenset(x.name for x in self.arguments if isinstance(x, Place)) - self.writes


@dataclass(frozen=True)
class RowStep(Step):
    """Computes a tile of rows, `BLOCK` channels at a time.

    Attributes:
        text: the function without its name.
        rows: rows of an image.
        elsewhere: names of the places of which it reads other rows than the tile's.
        multiplies: whether it takes a product, whose tiles have a least size.
    """

    text: Text
    rows: int
    width: int
    elsewhere: frozenset[str]
    multiplies: bool


@dataclass(frozen=True)
class ScanStep(Step):
    """Takes a block of channels of one image through all rows.

    Attributes:
        programs: functions that compute the same, and the channels of a program of each: the first for many images,
            a second one for few.
    """

    programs: tuple[tuple[Text, int], ...]
    rows: int
    width: int


@dataclass(frozen=True)
class AttentionStep(Step):
    """Takes tiles of queries of one head through all keys of their sequence.

    Attributes:
        tiles: of queries, in an image.
        warps: of a program.
    """

    text: Text
    rows: int
    tiles: int
    heads: int
    warps: int


@dataclass(frozen=True)
class RotationStep(Step):
    """Computes the sums and differences of a rotation: `kernels.butterflies`."""

    rows: int
    width: int
    order: int


def steps_of(source: Source) -> list[Step]:
    """Returns the steps of one operation, in order.

    Raises:
        VisqError: the engine lacks something; the message names the operation.
    """
    body, operation = source.body, source.operation
    pieces = body.pieces()
    steps: list[Step] = []
    filled: Place | None = None
    if isinstance(operation.source, Scan | Attention):
        inside = [piece for piece in pieces if _with_source(piece, operation)]
        pieces = [piece for piece in pieces if piece not in inside]
        stores = [stored for piece in inside for stored in piece.stores]
        if any(piece.offsets for piece in pieces):
            filled = body.temporary("y", operation.width)
            stores.append(Stored(0, filled, None))
        steps += _scan(source, stores) if isinstance(operation.source, Scan) else [_attention(source, stores)]
    waiting = dict(body.turned)
    for group in _together(operation, pieces):
        for register in [r for r in waiting if _stage(body, pieces, r) < group[0].stage]:
            steps.append(_rotation(body, register, waiting.pop(register)))
        steps.append(_rows(source, group, filled))
    return steps


def _together(operation: Operation, pieces: list[Piece]) -> list[list[Piece]]:
    """Groups pieces by step: slices of a narrow product share one, which computes the product once."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        slices = [*groups[-1], piece] if groups else []
        narrow = isinstance(operation.source, Linear) and operation.width <= COLUMNS
        if narrow and slices and all(len(x.offsets) == 1 and x.stage == slices[0].stage for x in slices):
            groups[-1] = slices
        else:
            groups.append([piece])
    return groups


def _stage(body: Body, pieces: list[Piece], register: int) -> int:
    """Returns the stage after which the operand of a rotation is in memory; -1 where it is there from the start."""
    operand = body.in_memory[body.steps[register].src]
    return max((p.stage for p in pieces if any(s.place == operand for s in p.stores)), default=-1)


def _with_source(piece: Piece, operation: Operation) -> bool:
    """Returns whether a scan or attention itself may store a piece: it reads nothing but its row and parameters."""
    return piece.elementwise and piece.stage == 0 and piece.offsets == (0,) and piece.width == operation.width


def _written(stores: tuple[Stored, ...] | list[Stored]) -> frozenset[str]:
    return frozenset(stored.place.name for stored in stores)


def _storing(body: Body, stores: list[Stored]) -> Callable[[Text, At, str], None]:
    """Returns what writes the stores of a value of register 0."""

    def store(text: Text, at: At, y: str) -> None:
        values = Values(body, text, at, lambda offset: y)
        for stored in stores:
            values.store(stored)

    return store


def _attention(source: Source, stores: list[Stored]) -> AttentionStep:
    body, operation = source.body, source.operation
    assert isinstance(operation.source, Attention)
    text = attention_text(body, source.form, _storing(body, stores))
    arguments, writes = tuple(text.arguments), _written(stores)
    heads, count = operation.source.heads, tiles(operation.source, operation.rows)
    sizes = (operation.rows, count, heads, warps(operation.width // heads))
    return AttentionStep(operation.name, "attention", arguments, writes, text, *sizes)


def _scan(source: Source, stores: list[Stored]) -> list[Step]:
    """Returns the step of a scan, and before it the one that prepares B and C for the lanes of a warp."""
    body, operation, form = source.body, source.operation, source.form
    assert isinstance(operation.source, Scan)
    states = body.program.tensors[operation.source.B].width
    store, writes = _storing(body, stores), _written(stores)
    sizes = (operation.rows, operation.width)
    if not lane_scans.fits(form, states):
        text = scan_text(body, form, store)
        program = (text, channels_of(states, operation.width))
        return [ScanStep(operation.name, "scan", tuple(text.arguments), writes, (program,), *sizes)]
    place = lane_scans.inputs_place(body, states)
    first = lane_scans.inputs_text(body, form, place)
    reads = tuple(first.arguments)
    prepare = RowStep(
        operation.name, "scan inputs", reads, frozenset([place.name]), first, operation.rows, 1, frozenset(), False
    )
    codes = [stored.codes for stored in stores if stored.codes is not None]
    texts = [lane_scans.lane_text(body, form, store, codes, place, n) for n in lane_scans.counts(states)]
    programs = tuple((x.text, x.channels) for x in texts)
    return [prepare, ScanStep(operation.name, "scan", tuple(texts[0].text.arguments), writes, programs, *sizes)]


def _rotation(body: Body, register: int, turned: Place) -> RotationStep:
    step = body.steps[register]
    assert isinstance(step, Rotate)
    matrix, divisor = body.bundle.rotation(step.site)
    inverse = np.float32(1) / np.broadcast_to(divisor, turned.width).astype(np.float32)
    arguments = (body.in_memory[step.src], inverse, turned)
    writes = frozenset([turned.name])
    return RotationStep(body.operation.name, "rotation", arguments, writes, turned.rows, turned.width, len(matrix))


def _rows(source: Source, pieces: list[Piece], filled: Place | None) -> RowStep:
    """Returns the step of pieces; `filled` holds register 0 where an earlier step computed it."""
    operation, text = source.operation, Text()
    width = pieces[0].width if len(pieces) == 1 else operation.width
    begin_tile(text, operation.rows)
    at = At("row", "t", "c", "has_m", "has_c")

    def register_0(offset: int) -> str:
        if filled is None:
            return add_source(source, text, at, offset)
        column = text.let(f"c + {offset}")
        return read(text, filled, None, At("row", "t", column, "has_m", "has_c"))

    with text.loop(f"for first in range(0, {width}, BLOCK):"):
        text.line("c = first + tl.arange(0, BLOCK)[None, :]")
        text.line(f"has_c = c < {width}")
        if len(pieces) == 1:
            _write(source, text, at, register_0, pieces[0])
        else:
            whole = register_0(0)
            for piece in pieces:
                (offset,) = piece.offsets
                inside = text.let(f"(c >= {offset}) & (c < {offset + piece.width})")
                part = replace(at, column=text.let(f"c - {offset}"), has_column=inside)
                _write(source, text, part, lambda _: whole, piece)
    multiplies = isinstance(operation.source, Linear | DenseConv2d) and bool(pieces[0].offsets)
    kind = operation.source.kind + ("" if filled is None and pieces[0].offsets else " body")
    arguments = tuple(text.arguments)
    writes = frozenset().union(*(_written(piece.stores) for piece in pieces))
    rows, elsewhere = operation.rows, _elsewhere(source)
    return RowStep(operation.name, kind, arguments, writes, text, rows, width, elsewhere, multiplies)


def _write(source: Source, text: Text, at: At, register_0: Callable[[int], str], piece: Piece) -> None:
    values = Values(source.body, text, at, register_0)
    for stored in piece.stores:
        values.store(stored)


def _elsewhere(source: Source) -> frozenset[str]:
    """Returns the names of the places of which an operation reads other rows than the one it computes."""
    operation, places = source.operation, source.body.places
    names = set() if isinstance(operation.source, Linear) else set(inputs(operation.source))
    names |= {step.tensor for step in operation.body if isinstance(step, Load) and step.row is not None}
    return frozenset(places[name].name for name in names)
