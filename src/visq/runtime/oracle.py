"""The program executed by slow, obvious arithmetic in NumPy: it defines what the kernels must give, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from visq.runtime import arithmetic
from visq.runtime.arithmetic import Floats, product
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
from visq.runtime.fused_scan import FusedScan, integer_scan
from visq.runtime.images import checked_images
from visq.runtime.program import (
    Binary,
    Concat,
    Constant,
    Conv1d,
    Conv2d,
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
    Scan,
    Slice,
    Store,
    Transpose,
    Unary,
    WithConstant,
    WithScalar,
)
from visq.runtime.quantizers import Quantizer
from visq.runtime.scan import FixedScan, float_scan

UNARY: dict[str, Callable[[Floats], Floats]] = {
    "silu": arithmetic.silu,
    "softplus": arithmetic.softplus,
    "gelu": arithmetic.gelu,
    "neg": np.negative,
}


class Oracle:
    """Runs a program on one image at a time.

    Attributes:
        in_float: why, by operation, of everything that runs in float32.
        tensors: after a run, every tensor of the last image by name: bytes or float32, [rows, width].
    """

    def __init__(self, program: Program, bundle: Bundle) -> None:
        self.program, self.bundle = program, bundle
        self.forms: list[Form] = [form_of(program, operation, bundle) for operation in program.operations]
        reasons = {operation.name: reason(form) for operation, form in zip(program.operations, self.forms, strict=True)}
        self.in_float = {name: why for name, why in reasons.items() if why is not None}
        self.tensors: dict[str, np.ndarray] = {}

    def __call__(self, images: Floats) -> Floats:
        """images [B, channels, size, size] float32, normalized -> [B, classes]."""
        logits = [self._run(image) for image in checked_images(self.program, images)]
        width = self.program.tensors[self.program.output].width
        return np.stack(logits) if logits else np.zeros((0, width), np.float32)

    def _run(self, image: Floats) -> Floats:
        self.tensors = {}
        for operation, form in zip(self.program.operations, self.forms, strict=True):
            registers: dict[int, Floats] = {}
            row = self._source(operation, form, image)
            if row is not None:
                registers[0] = row
            for step in operation.body:
                self._step(operation, step, registers)
        return self._decoded(self.program.output)[0]

    # --- tensors

    def _order(self, name: str, rows: int) -> np.ndarray:
        """Which token of its site's scales each row of a tensor is."""
        return _order(rows, self.program.tensors[name].reverse)

    def _decoded(self, name: str) -> Floats:
        decl, data = self.program.tensors[name], self.tensors[name]
        if decl.site is None:
            return data
        return self.bundle.quantizer(decl.site).decode(data, self._order(name, decl.rows))

    def _integers(self, name: str) -> np.ndarray:
        decl = self.program.tensors[name]
        assert decl.site is not None
        return self.bundle.quantizer(decl.site).integers(self.tensors[name], self._order(name, decl.rows))

    # --- sources

    def _source(self, operation: Operation, form: Form, image: Floats) -> Floats | None:
        source = operation.source
        if isinstance(source, Patches):
            pixels = image if source.input is None else self._map(self._decoded(source.input)).transpose(2, 0, 1)
            return patches(pixels, source.patch, source.stride, source.padding)
        if isinstance(source, Concat):
            return np.concatenate([self._part(part) for part in source.parts])
        if isinstance(source, Linear):
            return self._linear(source, form)
        if isinstance(source, Conv1d):
            return self._conv1d(source, form)
        if isinstance(source, Conv2d):
            return self._conv2d(source, form)
        if isinstance(source, Transpose):
            x = self._decoded(source.input)
            return x.reshape(source.height, source.width, -1).transpose(1, 0, 2).reshape(x.shape)
        if isinstance(source, Mean):
            return arithmetic.mean(self._decoded(source.input))
        if isinstance(source, Scan):
            return self._scan(source, form)
        return None

    def _part(self, part: tuple[str, int, int] | Constant) -> Floats:
        if isinstance(part, Constant):
            return self.bundle.constant(part).reshape(1, -1)
        name, first, count = part
        return self._decoded(name)[first : first + count]

    def _linear(self, source: Linear, form: Form) -> Floats:
        if isinstance(form, FloatLinear):
            return product(self._decoded(source.input), form.weight) + form.bias
        assert isinstance(form, IntegerLinear | WideLinear)
        x = self.tensors[source.input].astype(np.int64)
        x = form.values(x) if isinstance(form, WideLinear) else x - form.zero[:, None]
        value = (x @ form.weight.T).astype(np.float32) * form.scale
        if form.token is not None:
            value = value * form.token[:, None]
        return value + form.bias

    def _conv1d(self, source: Conv1d, form: Form) -> Floats:
        flip = slice(None, None, -1 if source.reverse else 1)
        if isinstance(form, FloatConv1d):
            x = self._decoded(source.input)[flip]
            return (_taps(x, form.weight) + form.bias)[flip]
        assert isinstance(form, IntegerConv1d)
        codes = (self.tensors[source.input].astype(np.int64) - form.zero)[flip]
        return (_taps(codes, form.weight).astype(np.float32) * form.scale + form.bias)[flip]

    def _conv2d(self, source: Conv2d, form: Form) -> Floats:
        if isinstance(form, FloatConv2d):
            x = self._map(self._decoded(source.input))
            return _windows(x, form.weight, source.padding) + form.bias
        assert isinstance(form, IntegerConv2d)
        codes = self._map(self.tensors[source.input].astype(np.int64) - form.zero)
        return _windows(codes, form.weight, source.padding).astype(np.float32) * form.scale + form.bias

    def _map(self, x: np.ndarray) -> np.ndarray:
        """Rows of a square map as [side, side, width]."""
        side = math.isqrt(len(x))
        return x.reshape(side, side, -1)

    def _scan(self, source: Scan, form: Form) -> Floats:
        flip = slice(None, None, -1 if source.reverse else 1)
        u, delta, B = (self._decoded(name)[flip] for name in (source.u, source.delta, source.B))
        if isinstance(form, FixedScan | FusedScan):
            return integer_scan(form, u, delta, B, self._integers(source.C)[flip])[flip]
        assert isinstance(form, FloatScan)
        return float_scan(form.A, form.abar, form.bbar, form.h, u, delta, B, self._decoded(source.C)[flip])[flip]

    # --- row instructions, all rows at once

    def _step(self, operation: Operation, step: object, registers: dict[int, Floats]) -> None:
        if isinstance(step, Store):
            self.tensors[step.tensor] = self._stored(step, registers[step.src])
        elif isinstance(step, Load):
            rows = self._decoded(step.tensor)
            registers[step.dst] = rows if step.row is None else np.repeat(rows[step.row, None], operation.rows, 0)
        elif isinstance(step, Slice):
            registers[step.dst] = registers[step.src][:, step.offset : step.offset + step.width]
        elif isinstance(step, Unary):
            registers[step.dst] = UNARY[step.op](registers[step.src])
        elif isinstance(step, Binary):
            a, b = registers[step.a], registers[step.b]
            registers[step.dst] = a + b if step.op == "add" else a * b
        elif isinstance(step, WithConstant):
            x, value = registers[step.src], self.bundle.constant(step.constant)
            value = value.reshape(value.shape[-2:] if value.ndim > 1 else value.shape)
            registers[step.dst] = x + value if step.op == "add_constant" else x * value
        elif isinstance(step, WithScalar):
            registers[step.dst] = registers[step.src] * np.float32(step.value)
        elif isinstance(step, RmsNorm):
            registers[step.dst] = arithmetic.rms_norm(registers[step.src], self.bundle.constant(step.weight), step.eps)
        elif isinstance(step, LayerNorm):
            weight, bias = self.bundle.constant(step.weight), self.bundle.constant(step.bias)
            registers[step.dst] = arithmetic.layer_norm(registers[step.src], weight, bias, step.eps)
        elif isinstance(step, Round):
            quantizer, x = self.bundle.quantizer(step.site), registers[step.src]
            order = _order(len(x), step.reverse)
            registers[step.dst] = quantizer.decode(quantizer.encode(x, order), order)
        elif isinstance(step, Rotate):
            matrix, divisor = self.bundle.rotation(step.site)
            registers[step.dst] = arithmetic.rotate(registers[step.src], np.float32(1) / divisor, matrix)

    def _stored(self, step: Store, x: Floats) -> np.ndarray:
        decl = self.program.tensors[step.tensor]
        if decl.site is None:
            return np.ascontiguousarray(x)
        quantizer: Quantizer = self.bundle.quantizer(decl.site)
        return quantizer.encode(x, self._order(step.tensor, decl.rows))


def patches(image: Floats, patch: int, stride: int, padding: int = 0) -> Floats:
    """image [channels, H, W] -> rows of patches [M, channels * patch * patch]."""
    image = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (patch, patch), (1, 2))[:, ::stride, ::stride]
    return np.ascontiguousarray(windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1] * windows.shape[2], -1))


def _order(rows: int, reverse: bool) -> np.ndarray:
    order = np.arange(rows)
    return order[::-1] if reverse else order


def _taps(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """sum_k x[t - K + 1 + k] weight[:, k], added up in the order of k; x [L, C], weight [C, K]."""
    taps = weight.shape[1]
    padded = np.concatenate([np.zeros((taps - 1, x.shape[1]), x.dtype), x])
    total = np.zeros_like(x)
    for k in range(taps):
        total = total + padded[k : k + len(x)] * weight[:, k]
    return total


def _windows(x: np.ndarray, weight: np.ndarray, padding: int) -> np.ndarray:
    """The sum over a window of x [H, W, C] times weight [C, K, K], row by row of the window -> [positions, C]."""
    kernel = weight.shape[1]
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    height, width = x.shape[0] - kernel + 1, x.shape[1] - kernel + 1
    total = np.zeros((height, width, x.shape[2]), x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            total = total + x[i : i + height, j : j + width] * weight[:, i, j]
    return total.reshape(height * width, -1)
