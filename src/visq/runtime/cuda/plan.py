"""Turns a program into launches of kernels, and places its tensors in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from visq.integer.operations import DenseConv2d, Linear, Load, Operation, Rotate, Scan, Store, inputs
from visq.integer.program import Program
from visq.native.memory import Arena
from visq.runtime.bundle import Bundle
from visq.runtime.cuda.bodies import Body, Piece, Stored, Values, read
from visq.runtime.cuda.scans import scan_text
from visq.runtime.cuda.sources import IMAGES, Source, add_source
from visq.runtime.cuda.text import At, Place, Text
from visq.runtime.operation_forms import form_of, reason

#: Tensors begin at a multiple of this many bytes.
ALIGN = 256

#: Turns the number of images into a kernel's grid and compile-time parameters.
Shape = Callable[[int], tuple[tuple[int, ...], dict[str, int]]]


@dataclass(frozen=True)
class Launch:
    """A kernel and what it runs on.

    Attributes:
        name: the operation, for errors.
        kind: the kind of source, for profiles; what follows a source in kernels of its own is its `body`.
        kernel: the text of a generated kernel, or the name of a function in `kernels`.
        arguments: places and parameters, in order.
        rows: rows of an image that the kernel computes; None where it takes no number of rows.
        warps: warps of a program.
    """

    name: str
    kind: str
    kernel: str
    arguments: tuple[Place | np.ndarray, ...]
    rows: int | None
    shape: Shape
    warps: int = 4

    def without_values(self) -> Launch:
        """Returns the launch without its parameters, once they are on the device."""
        return replace(self, arguments=())


@dataclass
class Plan:
    """The launches of a program in order, and where its tensors lie.

    Attributes:
        in_float: for each operation that runs in float32, the reason.
        offsets: byte at which a tensor of one image starts, by the name of its place. With B images it starts at B
            times that.
        bytes_an_image: memory of all tensors for each image.
    """

    launches: list[Launch] = field(default_factory=list)
    in_float: dict[str, str] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    bytes_an_image: int = 0


def make_plan(program: Program, bundle: Bundle, separate_memory: bool = False) -> Plan:
    """Returns the plan of a program.

    Arguments:
        separate_memory: gives every tensor its own memory.

    Raises:
        VisqError: parameters do not fit, or the engine lacks something; the message names the operation.
    """
    plan, arena = Plan(), Arena(ALIGN)
    image = Place(IMAGES, program.channels, program.height * program.width, coded=False)
    for name, decl in program.tensors.items():
        plan.places[name] = Place(f"tensor {name}", decl.rows, decl.width, decl.site is not None)
    last_reader = _last_readers(program)

    def take(place: Place) -> None:
        if place.name not in plan.offsets:
            plan.offsets[place.name] = arena.take(place.bytes_an_image)

    plan.places[IMAGES] = image
    take(image)
    for index, operation in enumerate(program.operations):
        form = form_of(program, operation, bundle)
        if (why := reason(form)) is not None:
            plan.in_float[operation.name] = why
        body = Body(program, operation, bundle, plan.places, index)
        launches = _launches(Source(body, form, image, (program.height, program.width)))
        used = [x for launch in launches for x in launch.arguments if isinstance(x, Place)]
        for place in used:
            take(place)
        plan.launches += launches
        bundle.forget()  # the launches have copies
        if not separate_memory:
            ended = {place.name for place in used if place.temporary}
            ended |= {plan.places[name].name for name, last in last_reader.items() if last == index}
            for name in ended:
                arena.free(plan.offsets[name])
    plan.bytes_an_image = arena.size
    return plan


def _last_readers(program: Program) -> dict[str, int]:
    """Returns the index of the operation that reads each tensor last, or writes it if none reads it."""
    last: dict[str, int] = {}
    for index, operation in enumerate(program.operations):
        for name in inputs(operation.source):
            last[name] = index
        for step in operation.body:
            if isinstance(step, Load | Store):
                last[step.tensor] = index
    last[program.output] = len(program.operations)
    return last


def _launches(source: Source) -> list[Launch]:
    """Returns the launches of one operation."""
    body, operation = source.body, source.operation
    pieces = body.pieces()
    launches: list[Launch] = []
    filled: Place | None = None
    if isinstance(operation.source, Scan):
        inside = [piece for piece in pieces if _in_scan(piece, operation)]
        pieces = [piece for piece in pieces if piece not in inside]
        stores = [stored for piece in inside for stored in piece.stores]
        if any(piece.offsets for piece in pieces):
            filled = body.temporary("y", operation.width)
            stores.append(Stored(0, filled, None))
        launches.append(_scan(source, stores))
    waiting = dict(body.turned)
    for piece in pieces:
        for register in [r for r in waiting if _stage(body, pieces, r) < piece.stage]:
            launches.append(_butterflies(body, register, waiting.pop(register)))
        launches.append(_piece(source, piece, filled))
    return launches


def _stage(body: Body, pieces: list[Piece], register: int) -> int:
    """Returns the stage after which the operand of a rotation is in memory; -1 where it is there from the start."""
    operand = body.operands[register]
    return max((p.stage for p in pieces if any(s.place == operand for s in p.stores)), default=-1)


def _in_scan(piece: Piece, operation: Operation) -> bool:
    """Returns whether the scan's own kernel may store a piece: it reads nothing but y and parameters."""
    return piece.elementwise and piece.stage == 0 and piece.offsets == (0,) and piece.width == operation.width


def _scan(source: Source, stores: list[Stored]) -> Launch:
    body, operation = source.body, source.operation

    def store(text: Text, at: At, y: str) -> None:
        values = Values(body, text, at, lambda offset: y)
        for stored in stores:
            values.store(stored)

    text = scan_text(body, source.form, store)
    width = operation.width
    assert isinstance(operation.source, Scan)
    states = body.program.tensors[operation.source.B].width
    block = max(min(256 // states, _power_of_two(width), 64), 2)

    def shape(batch: int) -> tuple[tuple[int, ...], dict[str, int]]:
        return (batch, -(-width // block)), {"BLOCK": block}

    return Launch(
        operation.name,
        "scan",
        text.source("BLOCK: tl.constexpr"),
        tuple(text.arguments),
        operation.rows,
        shape,
        warps=1,
    )


def _butterflies(body: Body, register: int, turned: Place) -> Launch:
    step = body.steps[register]
    assert isinstance(step, Rotate)
    matrix, divisor = body.bundle.rotation(step.site)
    order, width, rows = len(matrix), turned.width, turned.rows
    sizes = (width, order, width // order, _power_of_two(order))

    def shape(batch: int) -> tuple[tuple[int, ...], dict[str, int]]:
        return (batch * rows,), dict(zip(("W", "ORDER", "RUNS", "WIDE"), sizes, strict=True))

    inverse = np.float32(1) / np.broadcast_to(divisor, width).astype(np.float32)
    arguments = (body.operands[register], inverse, turned)
    return Launch(body.operation.name, "rotation", "butterflies", arguments, None, shape, warps=1)


def _piece(source: Source, piece: Piece, filled: Place | None) -> Launch:
    """Returns the kernel of one piece; `filled` holds register 0 where an earlier kernel computed it."""
    operation, width, text = source.operation, piece.width, Text()
    text.line("m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]")
    text.line("c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]")
    text.line("has_m = m < M")
    text.line(f"has_c = c < {width}")
    text.line("row = m.to(tl.int64)")
    text.line(f"t = m % {operation.rows}")
    at = At("row", "t", "c", "has_m", "has_c")

    def register_0(offset: int) -> str:
        if filled is None:
            return add_source(source, text, at, offset)
        column = text.let(f"c + {offset}")
        return read(text, filled, None, At("row", "t", column, "has_m", "has_c"))

    values = Values(source.body, text, at, register_0)
    for stored in piece.stores:
        values.store(stored)
    multiplies = isinstance(operation.source, Linear | DenseConv2d) and bool(piece.offsets)

    def shape(batch: int) -> tuple[tuple[int, ...], dict[str, int]]:
        count = batch * operation.rows
        most = 64 if count > 2048 else 32
        rows = max(min(most, _power_of_two(count)), 2)
        block = max(min(64 if multiplies else 128, _power_of_two(width)), 2)
        if multiplies:
            rows, block = max(rows, 16), max(block, 16)
        return (-(-count // rows), -(-width // block)), {"ROWS": rows, "BLOCK": block}

    kernel = text.source("ROWS: tl.constexpr, BLOCK: tl.constexpr")
    kind = operation.source.kind + ("" if filled is None and piece.offsets else " body")
    return Launch(operation.name, kind, kernel, tuple(text.arguments), operation.rows, shape)


def _power_of_two(size: int) -> int:
    """Returns the least power of two that is not below size."""
    return 1 << max(math.ceil(size) - 1, 0).bit_length()
