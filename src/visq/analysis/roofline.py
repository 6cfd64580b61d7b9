"""Bounds the time of the engine's work on this machine from below, by counted work and measured rates.

docs/engine.md says what the number ignores.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from visq.integer.arithmetic import EXP2_FRACTION
from visq.integer.attention import IntegerAttention
from visq.integer.fixed_scan import FixedScan
from visq.integer.float_scan import FloatScan
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
from visq.integer.fused_scan import FusedScan
from visq.integer.instructions import ELEMENTWISE, EXP2_COST
from visq.integer.ladder_scan import LadderScan
from visq.integer.operations import (
    Append,
    Attention,
    Instruction,
    LayerNorm,
    Load,
    Mean,
    RmsNorm,
    Rotate,
    Round,
    Slice,
    Store,
    Unary,
    WithConstant,
)
from visq.integer.program import Program
from visq.integer.scans import IntegerScan
from visq.runtime.bundle import Bundle
from visq.runtime.operation_forms import form_of

#: Additions and multiplications of one update of the float32 scan: delta A, its power, delta B, Abar h + Bbar u, the
#: share of y.
_FLOAT_UPDATE = 1 + EXP2_COST + 1 + 3 + 2


@dataclass(frozen=True)
class Work:
    """Counts the work of one image.

    Attributes:
        products8: multiply-adds of 8-bit integers (linear layers, patches, convolutions).
        products16: multiplications of 16-bit integers (fixed-point scans).
        floats: additions and multiplications of float32.
        weight_bytes: read once a call, however many images it has.
        image_bytes: the image. Tensors between operations are small enough to stay in the caches and are not counted.
    """

    products8: int
    products16: int
    floats: int
    weight_bytes: int
    image_bytes: int


@dataclass(frozen=True)
class Rates:
    """Holds what this machine reaches a second with a number of threads, in the units of `Work` and in bytes."""

    products8: float
    products16: float
    floats: float
    bytes: float


def count_work(program: Program, bundle: Bundle) -> Work:
    """Returns the work of a program, in the arithmetic form each operation has.

    Raises:
        VisqError: parameters that do not fit the program.
    """
    products8 = products16 = floats = weight_bytes = 0
    for operation in program.operations:
        form = form_of(program, operation, bundle)
        outputs = operation.rows * operation.width
        if isinstance(form, IntegerLinear):
            products8 += operation.rows * form.weight.size
            floats += outputs * (2 if form.token is None else 3)
        elif isinstance(form, WideLinear):  # a 16-bit product takes as long as two of 8 bits
            products8 += 2 * operation.rows * form.weight.size
            floats += outputs * (2 if form.token is None else 3)
        elif isinstance(form, IntegerConv1d | IntegerConv2d):
            products8 += operation.rows * form.weight.size
            floats += outputs * 2
        elif isinstance(form, FloatLinear | FloatConv1d | FloatConv2d):
            floats += operation.rows * (2 * form.weight.size + operation.width)
        elif isinstance(form, FixedScan | FusedScan | LadderScan):
            products16 += operation.rows * math.prod(form.shape) * _scan_products(form)
            if isinstance(form, LadderScan):
                floats += outputs * (2 + EXP2_COST)
            floats += outputs * 6  # two each of delta, u and y
        elif isinstance(form, FloatScan):
            floats += operation.rows * form.A.size * _FLOAT_UPDATE
        elif isinstance(operation.source, Attention):
            products = 2 * outputs * operation.source.length
            products16, floats = (
                (products16 + products, floats)
                if isinstance(form, IntegerAttention)
                else (products16, floats + 2 * products)
            )
            floats += operation.rows * operation.source.heads * operation.source.length * (4 + EXP2_COST)
        elif isinstance(operation.source, Mean):
            floats += operation.width * (program.tensors[operation.source.input].rows + 1)
        weight_bytes += _form_bytes(form)
        widths = {0: operation.width}
        for step in operation.body:
            width = _width(program, step, widths)
            floats += operation.rows * width * _float_operations(program, bundle, step, width)
            if isinstance(step, LayerNorm):
                weight_bytes += bundle.constant(step.weight).nbytes + bundle.constant(step.bias).nbytes
            if isinstance(step, WithConstant | RmsNorm):
                weight_bytes += bundle.constant(step.constant if isinstance(step, WithConstant) else step.weight).nbytes
            if isinstance(step, Rotate):
                weight_bytes += bundle.rotation(step.site)[0].nbytes
    return Work(products8, products16, floats, weight_bytes, 4 * program.channels * program.height * program.width)


def _scan_products(form: IntegerScan) -> int:
    """16-bit multiplications of one update of one state: delta A (two halves), its power, the two of the state, the
    share of y; and, where they have codes, Abar times the ratio of scales, and Bbar. With a ladder its power is one."""
    if isinstance(form, LadderScan):
        return 1 + 2 + 1
    return 2 + len(EXP2_FRACTION) + 2 + 1 + (2 if isinstance(form, FixedScan) else 0)


def _form_bytes(form: Form) -> int:
    """Returns the parameters' bytes as the engine holds them: 8-bit weights, 16-bit A in fixed-point scans, float32."""
    if isinstance(form, IntegerLinear | WideLinear | IntegerConv1d | IntegerConv2d):
        return form.weight.size + 4 * (form.scale.size + form.bias.size)
    if isinstance(form, FloatLinear | FloatConv1d | FloatConv2d):
        return 4 * (form.weight.size + form.bias.size)
    if isinstance(form, FixedScan | FusedScan):
        return 2 * form.a.size
    if isinstance(form, LadderScan):
        return 4 * form.rate.size
    return 4 * form.A.size if isinstance(form, FloatScan) else 0


def _width(program: Program, step: Instruction, widths: dict[int, int]) -> int:
    """Returns the width of the register that a step writes (a store: reads), and notes it in `widths`."""
    if isinstance(step, Store):
        return widths[step.src]
    if isinstance(step, Load):
        width = program.tensors[step.tensor].width
    elif isinstance(step, Slice):
        width = step.width
    elif isinstance(step, Append):
        width = widths[step.a] + widths[step.b]
    else:
        width = widths[step.a if step.op in ("add", "mul") else step.src]  # type: ignore[union-attr]
    widths[step.dst] = width
    return width


def _float_operations(program: Program, bundle: Bundle, step: Instruction, width: int) -> int:
    """Returns the additions and multiplications for each element that a step writes."""
    if isinstance(step, Load | Store):  # decoding and encoding multiply by a scale
        return int(program.tensors[step.tensor].site is not None)
    if isinstance(step, Unary):
        return ELEMENTWISE[step.op].cost
    if isinstance(step, RmsNorm):
        return 4
    if isinstance(step, LayerNorm):  # the mean, the difference, the variance, three to scale and shift
        return 7
    if isinstance(step, Rotate):  # the divisor, sums and differences, the small matrix
        order = len(bundle.rotation(step.site)[0])
        return 1 + (width // order).bit_length() - 1 + 2 * order
    return 0 if isinstance(step, Slice | Append) else 2 if isinstance(step, Round) else 1


# --- rates

#: How long each measurement takes [s].
_SECONDS = 0.05
#: Sides of the patches whose products are timed. The best length of a sum lies between them.
_PATCHES = (8, 16, 24)
_OUTPUTS = 256


def measure_rates(isa: str, threads: int, size: int) -> Rates:
    """Measures the rates of this machine with the engine's own products, on matrices that stay in its caches.

    Arguments:
        isa: the engine's instruction set. 16-bit products are not timed: an instruction of VNNI takes half as many of
            them as of 8-bit ones, in the same time, and below VNNI 8-bit products are made of 16-bit ones. AMX has
            8-bit products alone: the 16-bit ones are VNNI's.
        size: bytes in the array whose copying gives the rate of moving bytes: caches count as they do for the engine.
    """

    def products(isa: str) -> float:
        return max(_products(isa, "linear", patch, threads) for patch in _PATCHES)

    products8 = products(isa)
    vectors = products("avx512vnni") if isa == "amx" else products8
    return Rates(
        products8=products8,
        products16=vectors / 2 if isa in ("amx", "avx512vnni") else vectors,
        floats=2 * max(_products(isa, "float linear", patch, threads) for patch in _PATCHES),
        bytes=_copying(size, threads),
    )


def _products(isa: str, kind: str, patch: int, threads: int) -> float:
    """Returns the multiply-adds a second of a linear layer over all patches of an image, an image for each thread.

    `kind`: `linear` or `float linear`, by its name in the engine's profile, which tells its time from the rest's. The
    quickest run counts: others may have been interrupted.
    """
    from visq.native.extension import _C
    from visq.native.flat_file import FlatFile

    side, width = 2 * patch, patch * patch
    rows = (side - patch + 1) ** 2
    rng, none = np.random.default_rng(0), np.zeros(0, np.float32)
    file = FlatFile(1, side)
    channels, tokens = np.ones(width, np.float32), np.ones(rows, np.float32)
    zeros, bias = np.zeros(rows, np.float32), np.zeros(_OUTPUTS, np.float32)
    codes = -1
    if kind == "linear":
        codes = file.add_codec(width, rows, channels, channels, tokens, tokens, none, zeros, 0.0, 255.0, none, none)
    x = file.add_tensor(rows, width, 0, codes)
    at = -(-rows * width * 4 // 64) * 64
    y = file.add_tensor(rows, _OUTPUTS, at, -1)
    file.add("patches", rows, width, -1, patch, 1, 0)
    file.add("store", 0, x)
    if kind == "linear":
        weight = rng.integers(-128, 128, _OUTPUTS * width, dtype=np.int8)
        scale = np.ones(_OUTPUTS, np.float32)
        file.int_linear(rows, _OUTPUTS, x, weight, scale, tokens, zeros.astype(np.int32), bias)
    else:
        file.add("float_linear", rows, _OUTPUTS, x, rng.random(_OUTPUTS * width, np.float32), bias)
    file.add("store", 0, y)
    file.add("finish", at + rows * _OUTPUTS * 4 + 256, y)
    engine = _C.Engine(isa, file.bytes())

    images = rng.uniform(0, 200, (threads, 1, side, side)).astype(np.float32)
    out = np.empty((threads, _OUTPUTS), np.float32)
    best, end = math.inf, time.perf_counter() + _SECONDS
    while best == math.inf or time.perf_counter() < end:
        engine.enable_profile(True)  # counts from zero
        engine.run(images, out, threads)
        best = min(best, engine.profile()[kind])
    return threads * rows * width * _OUTPUTS / (best / threads)


def _copying(size: int, threads: int) -> float:
    """Returns bytes read and written a second: each thread copies half of its share of `size` to the other half, all at
    once, and its quickest copy counts."""
    half = max(size // (2 * threads), 1)
    parts = [(np.ones(half, np.uint8), np.empty(half, np.uint8)) for _ in range(threads)]

    def copy(part: tuple[np.ndarray, np.ndarray]) -> float:
        best, end = math.inf, time.perf_counter() + _SECONDS
        while best == math.inf or time.perf_counter() < end:
            start = time.perf_counter()
            np.copyto(part[1], part[0])
            best = min(best, time.perf_counter() - start)
        return best

    with ThreadPoolExecutor(threads) as pool:
        return sum(2 * half / seconds for seconds in pool.map(copy, parts))


def roofline(work: Work, rates: Rates, batch: int, seconds: float) -> dict[str, float]:
    """Returns the least milliseconds of computing and of moving bytes for `batch` images, and what fraction of
    the measured `seconds` the larger of the two is."""
    compute = work.products8 / rates.products8 + work.products16 / rates.products16 + work.floats / rates.floats
    compute *= batch
    memory = (work.weight_bytes + batch * work.image_bytes) / rates.bytes
    return {"compute_ms": 1e3 * compute, "memory_ms": 1e3 * memory, "fraction": max(compute, memory) / seconds}
