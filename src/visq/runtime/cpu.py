"""A program on the C++ engine: parameters are packed once, then images run without Python in between.

The bits are those of `visq.runtime.oracle`, on every instruction set, for every thread count and batch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visq.errors import VisqError
from visq.runtime.arithmetic import LOG2E, Floats, midpoints
from visq.runtime.bundle import Bundle
from visq.runtime.forms import (
    FloatConv1d,
    FloatConv2d,
    FloatLinear,
    FloatScan,
    Form,
    IntegerConv1d,
    IntegerConv2d,
    IntegerLinear,
    WideLinear,
    form_of,
    reason,
)
from visq.runtime.fused_scan import FusedScan, IntegerScan
from visq.runtime.images import checked_images
from visq.runtime.program import (
    Binary,
    Concat,
    Constant,
    Conv1d,
    Conv2d,
    Instruction,
    LayerNorm,
    Linear,
    Load,
    Mean,
    Operation,
    Patches,
    Program,
    RmsNorm,
    Rotate,
    Round,
    Rows,
    Scan,
    Slice,
    Store,
    Transpose,
    Unary,
    WithConstant,
    WithScalar,
    inputs,
)
from visq.runtime.quantizers import Factor, Quantizer
from visq.runtime.scan import FixedScan
from visq.runtime.schedule import origins, scans_together

try:
    from visq import _C
except ImportError as error:  # installed without a compiler
    _C = None  # type: ignore[assignment]
    _missing = str(error)

#: Fastest first. VISQ_ISA names one of them, or a level of the kernels in visq.ops, of which the engine takes the
#: fastest variant.
ISAS = ("amx", "avx512vnni", "avx512", "avx2", "scalar")
#: `amx` with its matrix instructions in C++, for tests on machines without them: only ever taken by name.
EMULATED = "amx-emulated"
LEVELS = {"avx512": ("avx512vnni", "avx512"), "avx2": ("avx2",), "scalar": ("scalar",)}

LANES = 16
LINE = 64


def present_isas() -> tuple[str, ...]:
    """Instruction sets both this build and this machine have, fastest first."""
    return tuple(name for name in ISAS if has_isa(name))


def has_isa(name: str) -> bool:
    """Whether both this build and this machine have an instruction set, or can emulate it."""
    return _C is not None and bool(_C.has_engine_isa(name))


def available() -> bool:
    """Whether the extension the engine needs is installed."""
    return _C is not None


def default_isa() -> str:
    """What VISQ_ISA asks for, or the fastest there is.

    Raises:
        VisqError: the extension is missing, or the machine or build lacks what was asked for.
    """
    if _C is None:
        raise VisqError(f"the engine needs the C++ extension, which is not installed ({_missing})")
    present, wanted = present_isas(), os.environ.get("VISQ_ISA")
    if not wanted:
        return present[0]
    for name in LEVELS.get(wanted, (wanted,)):
        if has_isa(name):
            return name
    raise VisqError(f"VISQ_ISA={wanted} is not available here; available: {', '.join(present)}")


class CpuEngine:
    """Runs a program on images.

    Args:
        threads: how many threads a run may use; by default as many as this process has processors.
        isa: one of `present_isas()`, or `EMULATED`; by default VISQ_ISA or the fastest.
        keep: every tensor gets memory of its own, so that `tensors` has them after a run.

    Raises:
        VisqError: parameters that do not fit the program, or a range the engine has no form for.
    """

    def __init__(
        self, program: Program, bundle: Bundle, threads: int | None = None, isa: str | None = None, keep: bool = False
    ) -> None:
        program = program.model_copy(update={"operations": scans_together(program.operations)})
        self.program, self.keep = program, keep
        self.threads = len(os.sched_getaffinity(0)) if threads is None else threads
        isa = isa or default_isa()
        if not has_isa(isa):
            raise VisqError(f"instruction set {isa!r} is not available here; available: {', '.join(present_isas())}")
        try:
            self._engine = _C.Engine(isa, program.channels, program.size)
            writer = _Writer(program, bundle, self._engine, keep)
            self._indices = writer.write()
        except ValueError as error:
            raise VisqError(f"the program does not fit its parameters: {error}") from error
        self.in_float = writer.in_float
        self.classes = program.tensors[program.output].width

    @property
    def isa(self) -> str:
        return str(self._engine.isa)

    @property
    def parameter_bytes(self) -> int:
        """Memory of all parameters as the kernels want them: weights of 4 bits two to a byte (but for AMX), others a
        byte each, or two where there is no product of bytes or their input's values have 16 bits."""
        return int(self._engine.parameter_bytes)

    def __call__(self, images: Floats) -> Floats:
        """images [B, channels, size, size] float32, normalized -> [B, classes] float32.

        Raises:
            VisqError: images of another shape or type, or with values that are not finite.
        """
        images = checked_images(self.program, images)
        if self.threads < 1:
            raise VisqError(f"{self.threads} threads")
        out = np.empty((len(images), self.classes), np.float32)
        self._engine.run(images, out, self.threads)
        return out

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Every tensor of the last image by name: bytes or float32, [rows, width]. Only with `keep`."""
        if not self.keep:
            raise VisqError("the engine keeps tensors only when it was made with keep=True")
        found = {}
        for name, index in self._indices.items():
            decl = self.program.tensors[name]
            value = np.empty((decl.rows, decl.width), np.float32 if decl.site is None else np.uint8)
            self._engine.read_tensor(index, value.view(np.uint8))
            found[name] = value
        return found

    @property
    def bodies(self) -> dict[str, str]:
        """Row instructions by operation: those of a chain, whose values stay in registers, between bars."""
        return dict(zip((op.name for op in self.program.operations), self._engine.bodies(), strict=True))

    def enable_profile(self, on: bool = True) -> None:
        """Count from now on, from zero."""
        self._engine.enable_profile(on)

    def profile(self) -> dict[str, float]:
        """Seconds, summed over threads, by kind of operation: its source, and its body."""
        return dict(self._engine.profile())


@dataclass
class Lives:
    """First fit for pieces of memory: `take` returns an offset, `free` gives it back. `size`: the most ever needed."""

    align: int
    size: int = 0

    def __post_init__(self) -> None:
        self.taken: list[tuple[int, int]] = []

    def take(self, amount: int) -> int:
        amount = -(-amount // self.align) * self.align
        at = 0
        for begin, end in self.taken:
            if begin - at >= amount:
                break
            at = max(at, end)
        self.taken = sorted([*self.taken, (at, at + amount)])
        self.size = max(self.size, at + amount)
        return at

    def free(self, offset: int) -> None:
        self.taken = [piece for piece in self.taken if piece[0] != offset]


class _Writer:
    """Hands a program to the C++ engine, one operation after the other."""

    def __init__(self, program: Program, bundle: Bundle, engine: Any, keep: bool) -> None:
        self.program, self.bundle, self.engine, self.keep = program, bundle, engine, keep
        self.in_float: dict[str, str] = {}
        self.quantizers: dict[tuple[str, int, int, bool], int] = {}
        self.contents: dict[tuple[bytes | float, ...], int] = {}
        self.tensors: dict[str, int] = {}
        # Tensors that hold what another one does, by name.
        self.same: dict[str, str] = {}
        self.arena = Lives(LINE)
        self.offsets: dict[str, int] = {}
        # What the operations that run together write, and memory to free after them.
        self.together: set[str] = set()
        self.unused: list[int] = []
        self.last = self._last_readers()

    def write(self) -> dict[str, int]:
        """The index of every tensor by name."""
        for index, operation in enumerate(self.program.operations):
            self._operation(index, operation)
            self.bundle.forget()  # the engine has its own copies
        # Read by whole vectors, the last row may be read beyond its end.
        self.engine.finish(self.arena.size + 4 * LINE, self.tensors[self.program.output])
        return self.tensors

    # --- memory

    def _last_readers(self) -> dict[str, int]:
        """Which operation reads a tensor last (or writes it, where none reads it)."""
        last: dict[str, int] = {}
        for index, operation in enumerate(self.program.operations):
            for name in inputs(operation.source):
                last[name] = index
            for step in operation.body:
                if isinstance(step, Load | Store):
                    last[step.tensor] = index
        last[self.program.output] = len(self.program.operations)
        return last

    def _place(self, name: str) -> None:
        decl = self.program.tensors[name]
        stride = pad(decl.width, LANES) * 4 if decl.site is None else pad(decl.width, LINE)
        self.offsets[name] = self.arena.take(decl.rows * stride)
        codes = -1 if decl.site is None else self._quantizer(decl.site, decl.rows, decl.width, decl.reverse)
        self.tensors[name] = self.engine.add_tensor(decl.rows, decl.width, self.offsets[name], codes)

    def _place_stores(self, operation: Operation) -> None:
        """Memory for what a body stores; once for what it stores twice with equal quantizers."""
        stored: dict[tuple[tuple[int, int], int, int], str] = {}
        registers = origins(operation)
        for step in operation.body:
            if not isinstance(step, Store):
                continue
            decl = self.program.tensors[step.tensor]
            codes = -1 if decl.site is None else self._quantizer(decl.site, decl.rows, decl.width, decl.reverse)
            first = stored.setdefault((registers[step.src], decl.width, codes), step.tensor)
            if first == step.tensor or self.keep:
                self._place(step.tensor)
                self.together.add(step.tensor)
                continue
            self.same[step.tensor], self.tensors[step.tensor] = first, self.tensors[first]
            self.last[first] = max(self.last[first], self.last.pop(step.tensor))

    def _rounds_y(self, operation: Operation) -> Store | Round | None:
        """The instruction that makes a scan's y codes, if nothing else reads it: the scan writes them itself."""
        readers = [step for step in operation.body if not isinstance(step, Load) and 0 in _reads(step)]
        if len(readers) != 1 or not isinstance(readers[0], Store | Round):
            return None
        reader = readers[0]
        site = self.program.tensors[reader.tensor].site if isinstance(reader, Store) else reader.site
        return None if site is None or self.bundle.quantizer(site).table is not None else reader

    def _scan_output(self, operation: Operation, coded: Store | Round | None) -> int:
        """The tensor a scan's y is written to."""
        rows, width = operation.rows, operation.width
        if isinstance(coded, Store):
            return self.tensors[coded.tensor]
        codes = -1 if coded is None else self._quantizer(coded.site, rows, width, coded.reverse)
        offset = self.arena.take(rows * (pad(width, LANES) * 4 if coded is None else pad(width, LINE)))
        if not self.keep:
            self.unused.append(offset)
        return int(self.engine.add_tensor(rows, width, offset, codes))

    def _quantizer(self, site: str, rows: int, width: int, reverse: bool) -> int:
        key = (site, rows, width, reverse)
        if key not in self.quantizers:
            arrays = self._quantizer_arrays(site, self.bundle.quantizer(site), rows, width, reverse)
            content = (width, rows, *(x.tobytes() if isinstance(x, np.ndarray) else x for x in arrays))
            if content not in self.contents:
                self.contents[content] = int(self.engine.add_quantizer(width, rows, *arrays))
            self.quantizers[key] = self.contents[content]
        return self.quantizers[key]

    def _quantizer_arrays(
        self, site: str, q: Quantizer, rows: int, width: int, reverse: bool
    ) -> tuple[Floats | float, ...]:
        order = slice(None, None, -1 if reverse else 1)

        def spread(x: Floats | None, size: int, what: str) -> Floats:
            x = np.ones(1, np.float32) if x is None else x
            _need(x.size in (1, size), f"{site}: {what} of {x.size} elements for {size}")
            return np.ascontiguousarray(np.broadcast_to(x, size), np.float32)

        def by_token(x: Floats | None, what: str) -> Floats:
            _need(x is None or x.size == rows, f"{site}: {what} for another number of tokens")
            return np.ascontiguousarray(spread(x, rows, what)[order])

        _need(np.array_equal(np.rint(q.zero), q.zero) and np.abs(q.zero).max() <= 16000, f"{site}: no zero points")
        zero = (q.zero + np.float32(q.offset)).astype(np.float32)
        across = not q.zero_by_token and zero.size > 1
        table = np.zeros(0, np.float32) if q.table is None else q.table
        thresholds = table[:0] if q.thresholds is None else q.thresholds
        _need((np.diff(thresholds) >= 0).all(), f"{site}: its table is not in ascending order")
        return (
            spread(q.inverse_channel, width, "scales"),
            spread(q.step_channel, width, "scales"),
            by_token(q.inverse_token, "scales"),
            by_token(q.step_token, "scales"),
            spread(zero, width, "zero points") if across else zero[:0],
            by_token(zero, "zero points") if q.zero_by_token else np.full(rows, zero[0], np.float32),
            float(q.low + q.offset),
            float(q.high + q.offset),
            table,
            thresholds,
        )

    # --- operations

    def _operation(self, index: int, operation: Operation) -> None:
        joins = index > 0 and self._joins(operation, self.program.operations[index - 1])
        if not joins:
            self._free()
            self.together.clear()
        self._place_stores(operation)
        coded = self._rounds_y(operation) if _is_scan(operation) else None
        y = self._scan_output(operation, coded) if _is_scan(operation) else None
        form = form_of(self.program, operation, self.bundle)  # dropped at once: the engine has its own packed copy
        if (why := reason(form)) is not None:
            self.in_float[operation.name] = why
        self._source(operation, form, y)
        if joins:
            self.engine.join()
        self._body(operation, coded, y)
        if not self.keep:
            self.unused += [self.offsets[name] for name, last in self.last.items() if last == index]

    def _joins(self, operation: Operation, before: Operation) -> bool:
        """Whether an operation may run tile by tile with those it follows: it reads only the row at hand of what they
        write. Their memory is used again after all of them."""
        source = operation.source
        if operation.rows != before.rows or (isinstance(source, Scan) and not _is_scan(before)):
            return False
        elsewhere = set() if isinstance(source, Linear) else set(inputs(source))
        elsewhere |= {step.tensor for step in operation.body if isinstance(step, Load) and step.row is not None}
        return not {self.same.get(name, name) for name in elsewhere} & self.together

    def _free(self) -> None:
        for offset in self.unused:
            self.arena.free(offset)
        self.unused.clear()

    def _source(self, operation: Operation, form: Form, y: int | None) -> None:
        source, engine = operation.source, self.engine
        rows, width = operation.rows, operation.width
        if isinstance(source, Patches):
            x = -1 if source.input is None else self.tensors[source.input]
            engine.patches(rows, width, x, source.patch, source.stride, source.padding)
        elif isinstance(source, Rows):
            engine.rows(rows)
        elif isinstance(source, Concat):
            engine.concat(rows, width)
            for part in source.parts:
                if isinstance(part, Constant):
                    engine.concat_part(-1, 0, 1, flat(self.bundle.constant(part)))
                else:
                    engine.concat_part(self.tensors[part[0]], part[1], part[2], np.zeros(0, np.float32))
        elif isinstance(source, Linear):
            self._linear(operation, self.tensors[source.input], form)
        elif isinstance(source, Conv1d):
            self._conv1d(source, form)
        elif isinstance(source, Conv2d):
            self._conv2d(source, form)
        elif isinstance(source, Transpose):
            engine.transpose(self.tensors[source.input], source.height, source.width)
        elif isinstance(source, Mean):
            engine.mean(self.tensors[source.input])
        elif isinstance(source, Scan):
            assert y is not None
            self._scan(operation, source, form, y)

    def _linear(self, operation: Operation, x: int, form: Form) -> None:
        rows, width = operation.rows, operation.width
        if isinstance(form, FloatLinear):
            self.engine.float_linear(rows, width, x, flat(form.weight), flat(form.bias))
            return
        assert isinstance(form, IntegerLinear | WideLinear)
        token = np.ones(rows, np.float32) if form.token is None else form.token
        if isinstance(form, WideLinear):
            table = np.zeros(0, np.int16) if form.table is None else flat(form.table, np.int16)
            weight, offset, factor = flat(form.weight, np.int8), flat(form.zero, np.int16), flat(form.factor, np.int16)
            scales = (flat(form.scale), flat(token), flat(form.bias))
            self.engine.wide_linear(rows, width, x, weight, *scales, table, offset, factor)
            return
        zero = np.broadcast_to(form.zero, rows)
        self.engine.int_linear(
            rows,
            width,
            x,
            flat(form.weight, np.int8),
            flat(form.scale),
            flat(token),
            flat(zero, np.int32),
            flat(form.bias),
        )

    def _conv1d(self, source: Conv1d, form: Form) -> None:
        x = self.tensors[source.input]
        if isinstance(form, FloatConv1d):
            self.engine.float_conv(x, flat(form.weight), flat(form.bias), source.reverse)
            return
        assert isinstance(form, IntegerConv1d)
        weight, zero = flat(form.weight, np.int8), flat(form.zero, np.int32)
        self.engine.int_conv(x, weight, flat(form.scale), zero, flat(form.bias), source.reverse)

    def _conv2d(self, source: Conv2d, form: Form) -> None:
        x = self.tensors[source.input]
        if isinstance(form, FloatConv2d):
            self.engine.float_conv2d(x, source.kernel, source.padding, flat(form.weight), flat(form.bias))
            return
        assert isinstance(form, IntegerConv2d)
        weight, zero = flat(form.weight, np.int8), flat(form.zero, np.int32)
        self.engine.int_conv2d(x, source.kernel, source.padding, weight, flat(form.scale), zero, flat(form.bias))

    def _scan(self, operation: Operation, source: Scan, form: Form, y: int) -> None:
        tensors = [self.tensors[name] for name in (source.u, source.delta, source.B, source.C)]
        if isinstance(form, FloatScan):
            add_float_scan(self.engine, tensors, y, source.reverse, operation.rows, form)
            return
        assert isinstance(form, FixedScan | FusedScan)
        add_integer_scan(self.engine, tensors, y, source.reverse, form)

    # --- bodies

    def _body(self, operation: Operation, coded: Store | Round | None, y: int | None) -> None:
        slots = _Slots(operation)
        for index, step in enumerate(operation.body):
            if step is not coded:
                self._step(operation, step, slots)
            elif isinstance(step, Round):  # what the scan has written as codes
                self.engine.load(step.dst, y, -1, slots.take(step.dst, operation.width))
            slots.free(index)

    def _step(self, operation: Operation, step: Instruction, slots: _Slots) -> None:
        engine = self.engine
        if isinstance(step, Store):
            if step.tensor not in self.same:
                engine.store(step.src, self.tensors[step.tensor])
        elif isinstance(step, Slice):
            slots.width[step.dst] = step.width
            engine.slice(step.dst, step.src, step.offset, step.width)
        elif isinstance(step, Load):
            decl = self.program.tensors[step.tensor]
            slot = slots.take(step.dst, decl.width)
            own = {other.tensor for other in operation.body if isinstance(other, Store)}
            _need(step.row is None or step.tensor not in own, f"a row of {step.tensor}, which is not all written yet")
            engine.load(step.dst, self.tensors[step.tensor], -1 if step.row is None else step.row, slot)
        elif isinstance(step, Binary):
            engine.binary(step.op, step.dst, step.a, step.b, slots.take(step.dst, slots.width[step.a]))
        elif isinstance(step, Rotate):
            matrix, divisor = self.bundle.rotation(step.site)
            width = slots.width[step.src]
            slot = slots.take(step.dst, width, rotation_room(width, len(matrix)))
            engine.rotate(step.dst, step.src, flat(np.float32(1) / divisor), flat(matrix), slot)
        else:
            width = slots.width[step.src]
            slot = slots.take(step.dst, width)
            if isinstance(step, Unary):
                engine.unary(step.op, step.dst, step.src, slot)
            elif isinstance(step, WithConstant):
                engine.with_constant(step.op, step.dst, step.src, flat(self.bundle.constant(step.constant)), slot)
            elif isinstance(step, WithScalar):
                engine.mul_scalar(step.dst, step.src, step.value, slot)
            elif isinstance(step, RmsNorm):
                engine.rms_norm(step.dst, step.src, flat(self.bundle.constant(step.weight)), step.eps, slot)
            elif isinstance(step, LayerNorm):
                weight, bias = flat(self.bundle.constant(step.weight)), flat(self.bundle.constant(step.bias))
                engine.layer_norm(step.dst, step.src, weight, bias, step.eps, slot)
            elif isinstance(step, Round):
                codes = self._quantizer(step.site, operation.rows, width, step.reverse)
                engine.round(step.dst, step.src, codes, slot)


class _Slots:
    """Where registers of a body lie, in floats of a row: memory is used again after the last reader."""

    def __init__(self, operation: Operation) -> None:
        self.room = Lives(LANES)
        self.width = {0: operation.width}
        self.offset: dict[int, int] = {}
        self.last: dict[int, int] = {}
        registers = origins(operation)
        for index, step in enumerate(operation.body):
            for register in _reads(step):
                self.last[registers[register][0]] = index
            if not isinstance(step, Store):
                self.last.setdefault(registers[step.dst][0], index)

    def take(self, register: int, width: int, extra: int = 0) -> int:
        self.width[register] = width
        self.offset[register] = self.room.take(pad(width, LANES) + extra)
        return self.offset[register]

    def free(self, index: int) -> None:
        """After instruction `index`."""
        for register, last in self.last.items():
            if last == index and register in self.offset:
                self.room.free(self.offset[register])


def rotation_room(width: int, order: int) -> int:
    """Floats that a rotation with a matrix [order, order] needs beside its result: for what it multiplies; where there
    are sums and differences, for two of them, and for the products, each padded."""
    row = pad(width, LANES)
    return row if order == width else 2 * (row + LANES) + width // order * pad(order, LANES)


def _reads(step: Instruction) -> tuple[int, ...]:
    if isinstance(step, Binary):
        return step.a, step.b
    return () if isinstance(step, Load) else (step.src,)


def _is_scan(operation: Operation) -> bool:
    return isinstance(operation.source, Scan)


#: Fields of FixedScan that are single numbers.
_SCAN_NUMBERS = (
    "abar_fraction",
    "abar_high",
    "abar_bits",
    "bbar_low",
    "bbar_high",
    "bbar_bits",
    "state_low",
    "state_high",
    "point",
)


def add_integer_scan(engine: Any, tensors: list[int], y: int, reverse: bool, form: IntegerScan) -> None:
    """Start the operation of a scan in fixed point; `tensors` are u, delta, B, C."""
    floats = ("delta_scale", "input_channel", "y_channel", "beta_scale", "input_step", "y_step")
    shared = {
        "shift": form.shift,
        "a": flat(form.a, np.int32),
        "lift": flat(form.lift, np.int16),
        **{name: flat(getattr(form, name)) for name in floats},
    }
    if isinstance(form, FusedScan):
        power = flat(form.power, np.int32)
        engine.fused_scan(*tensors, y, reverse, shared, power, form.state_low, form.state_high, form.point)
        return
    lut = np.zeros(0, np.int16)
    engine.fixed_scan(
        *tensors,
        y,
        reverse,
        {name: int(getattr(form, name)) for name in _SCAN_NUMBERS},
        shared,
        np.array(form.abar_power, np.int32),
        lut if form.abar_lut is None else flat(form.abar_lut, np.uint16).view(np.int16),
        lut if form.bbar_lut is None else flat(form.bbar_lut, np.int16),
        flat(form.drive_channel),
        flat(form.decay, np.int32),
    )


def add_float_scan(engine: Any, tensors: list[int], y: int, reverse: bool, rows: int, form: FloatScan) -> None:
    """Start the operation of a scan in float32; `tensors` are u, delta, B, C."""
    h, none, width = form.h, np.zeros(0, np.float32), len(form.A)
    channel = np.ones(1, np.float32) if form.bbar is None else form.bbar.channel
    engine.float_scan(
        *tensors,
        y,
        reverse,
        flat(form.A * LOG2E),
        _factor(form.abar),
        _factor(form.bbar),
        flat(np.broadcast_to(channel, width)),
        flat(np.broadcast_to(np.float32(1) / channel, width)),
        none if h is None else flat(np.broadcast_to(h.step, rows)),
        none if h is None else flat(h.channel[:, None] * h.state),
        0 if h is None else h.low,
        0 if h is None else h.high,
        h is None or h.read_quantized,
    )


def _factor(factor: Factor | None) -> dict[str, Any]:
    """How Abar or Bbar is rounded; kinds as in csrc/engine/program.h."""
    none = np.zeros(0, np.float32)
    if factor is None:
        return {"kind": 0, "step": 1.0, "inverse": 1.0, "low": 0.0, "high": 0.0, "table": none, "thresholds": none}
    table = none if factor.table is None else factor.table
    return {
        "kind": 1 if factor.table is None else 2,
        "step": float(factor.step),
        "inverse": float(np.float32(1) / factor.step),
        "low": float(factor.low),
        "high": float(factor.high),
        "table": flat(table),
        "thresholds": none if factor.table is None else flat(midpoints(table)),
    }


def flat(x: np.ndarray, dtype: type = np.float32) -> NDArray[Any]:
    """Contiguous, as another type that holds the same values."""
    flat: NDArray[Any] = np.ascontiguousarray(x.reshape(-1), dtype)
    _need(np.dtype(dtype).kind == "f" or np.array_equal(flat, x.reshape(-1)), f"values do not fit {np.dtype(dtype)}")
    return flat


def pad(n: int, to: int) -> int:
    return -(-n // to) * to


def _need(condition: bool | np.bool_, what: str) -> None:
    if not condition:
        raise VisqError(what)
