"""Runs a program by slow, obvious arithmetic in NumPy. Its results are the bits that every kernel must give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from visq.integer import arithmetic
from visq.integer.arithmetic import Floats, product
from visq.integer.attention import FloatAttention, IntegerAttention, float_attention, integer_attention
from visq.integer.consistency import map_size
from visq.integer.fixed_scan import FixedScan
from visq.integer.float_scan import FloatScan, float_scan
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
from visq.integer.images import checked_images
from visq.integer.instructions import ELEMENTWISE
from visq.integer.ladder_scan import LadderScan
from visq.integer.operations import (
    AddValues,
    Append,
    Attention,
    AveragePool,
    Bilinear,
    Binary,
    Concat,
    Constant,
    Conv1d,
    Conv2d,
    DenseConv2d,
    EnterWindows,
    LayerNorm,
    LeaveWindows,
    Linear,
    Load,
    Mean,
    MergeSamples,
    Operation,
    Patches,
    PixelShuffle,
    RmsNorm,
    Rotate,
    Round,
    Sample,
    Scan,
    Slice,
    Store,
    Transpose,
    Turn,
    Unary,
    WithConstant,
    WithScalar,
    half,
)
from visq.integer.program import Program
from visq.integer.resampling import average_pool, bilinear
from visq.integer.scans import integer_scan
from visq.runtime.bundle import Bundle
from visq.runtime.operation_forms import form_of, reason


class Oracle:
    """The executor that defines the results; it runs a program on one image at a time.

    Attributes:
        in_float: for each operation that runs in float32, the reason.
        tensors: after a run, every tensor of the last image by name, [rows, width] bytes or float32.
    """

    def __init__(self, program: Program, bundle: Bundle) -> None:
        self.program, self.bundle = program, bundle
        self.forms: list[Form] = [form_of(program, operation, bundle) for operation in program.operations]
        reasons = {operation.name: reason(form) for operation, form in zip(program.operations, self.forms, strict=True)}
        self.in_float = {name: why for name, why in reasons.items() if why is not None}
        self.tensors: dict[str, np.ndarray] = {}

    def __call__(self, images: Floats) -> Floats:
        """Returns the results [B, *output_shape] float32 of normalized images [B, channels, height, width] float32."""
        results = [self._run(image) for image in checked_images(self.program, images)]
        return np.stack(results) if results else np.zeros((0, *self.program.output_shape), np.float32)

    def _run(self, image: Floats) -> Floats:
        self.tensors = {}
        for operation, form in zip(self.program.operations, self.forms, strict=True):
            registers: dict[int, Floats] = {}
            row = self._source(operation, form, image)
            if row is not None:
                registers[0] = row
            for step in operation.body:
                self._step(operation, step, registers)
        output = self._decoded(self.program.output)
        if not self.program.output_map:
            return output[0]
        return np.ascontiguousarray(self._map(self.program.output, output).transpose(2, 0, 1))

    # --- tensors

    def _order(self, name: str, rows: int) -> np.ndarray:
        """Returns, for each row of a tensor, the index of its token in the site's scales."""
        decl = self.program.tensors[name]
        return _order(rows, decl.reverse, decl.length)

    def _decoded(self, name: str) -> Floats:
        decl, data = self.program.tensors[name], self.tensors[name]
        if decl.site is None:
            return data
        return self.bundle.codec(decl.site).decode(data, self._order(name, decl.rows))

    def _integers(self, name: str) -> np.ndarray:
        decl = self.program.tensors[name]
        assert decl.site is not None
        return self.bundle.codec(decl.site).integers(self.tensors[name], self._order(name, decl.rows))

    # --- sources

    def _source(self, operation: Operation, form: Form, image: Floats) -> Floats | None:
        """Returns register 0 of every row, [rows, width]; None where the source fills nothing."""
        source = operation.source
        if isinstance(source, Patches):
            return self._patches(source, image)
        make = _SOURCES.get(type(source))
        return None if make is None else make(self, source, form)

    def _patches(self, source: Patches, image: Floats) -> Floats:
        pixels = (
            image if source.input is None else self._map(source.input, self._decoded(source.input)).transpose(2, 0, 1)
        )
        return patches(pixels, (source.patch,) * 2, (source.stride,) * 2, (source.padding,) * 2)

    def _concat(self, source: Concat, form: Form) -> Floats:
        return np.concatenate([self._part(part) for part in source.parts])

    def _transpose(self, source: Transpose, form: Form) -> Floats:
        x = self._decoded(source.input)
        return x.reshape(source.height, source.width, -1).transpose(1, 0, 2).reshape(x.shape)

    def _enter_windows(self, source: EnterWindows, form: Form) -> Floats:
        side, window = source.side, source.window
        across = -(-side // window)
        missing = across * window - side
        x = self._decoded(source.input).reshape(side, side, -1)
        x = np.pad(x, ((0, missing), (0, missing), (0, 0)))
        x = x.reshape(across, window, across, window, -1).transpose(0, 2, 1, 3, 4)
        return np.ascontiguousarray(x.reshape(-1, x.shape[-1]))

    def _leave_windows(self, source: LeaveWindows, form: Form) -> Floats:
        side, window = source.side, source.window
        across = -(-side // window)
        x = self._decoded(source.input).reshape(across, across, window, window, -1).transpose(0, 2, 1, 3, 4)
        x = x.reshape(across * window, across * window, -1)[:side, :side]
        return np.ascontiguousarray(x.reshape(side * side, -1))

    def _sample(self, source: Sample, form: Form) -> Floats:
        x = self._decoded(source.input).reshape(source.height, source.width, -1)
        x = np.pad(x, ((0, source.height % 2), (0, source.width % 2), (0, 0)))[source.row :: 2, source.column :: 2]
        return self._rows(x.transpose(1, 0, 2) if source.by_columns else x)

    def _merge_samples(self, source: MergeSamples, form: Form) -> Floats:
        rows, columns = half(source.height), half(source.width)
        samples = [self._decoded(name) for name in source.inputs]
        x = np.zeros((2 * rows, 2 * columns, samples[0].shape[1]), np.float32)
        for index, sample in enumerate(samples):
            row, column = index % 2, index // 2
            maps = sample.reshape(columns, rows, -1).transpose(1, 0, 2) if row else sample.reshape(rows, columns, -1)
            x[row::2, column::2] = maps
        return self._rows(x[: source.height, : source.width])

    def _attention(self, source: Attention, form: Form) -> Floats:
        names, shape = (source.q, source.k, source.v), (-1, source.length, self.program.tensors[source.q].width)
        if isinstance(form, IntegerAttention):
            q, k, v = (self._integers(name).reshape(shape) for name in names)
            return self._rows(integer_attention(form, q, k, v))
        assert isinstance(form, FloatAttention)
        values = (self._decoded(name).reshape(shape) for name in names)
        return self._rows(float_attention(form, *values))

    def _mean(self, source: Mean, form: Form) -> Floats:
        return arithmetic.mean(self._decoded(source.input))

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
        flip, ahead = slice(None, None, -1 if source.reverse else 1), source.ahead or 0
        if isinstance(form, FloatConv1d):
            x = self._sequences(self._decoded(source.input), source)[:, flip]
            return self._rows((_taps(x, form.weight, ahead) + form.bias)[:, flip])
        assert isinstance(form, IntegerConv1d)
        codes = self._sequences(self.tensors[source.input].astype(np.int64) - form.zero, source)[:, flip]
        return self._rows((_taps(codes, form.weight, ahead).astype(np.float32) * form.scale + form.bias)[:, flip])

    def _sequences(self, x: np.ndarray, source: Conv1d) -> np.ndarray:
        """Returns the rows [L, C] as the sequences [sequences, length, C] that they are."""
        return x.reshape(-1, source.length or len(x), x.shape[1])

    def _rows(self, x: Floats) -> Floats:
        return np.ascontiguousarray(x.reshape(-1, x.shape[-1]))

    def _conv2d(self, source: Conv2d, form: Form) -> Floats:
        if isinstance(form, FloatConv2d):
            x = self._map(source.input, self._decoded(source.input))
            return _windows(x, form.weight, source.padding) + form.bias
        assert isinstance(form, IntegerConv2d)
        codes = self._map(source.input, self.tensors[source.input].astype(np.int64) - form.zero)
        return _windows(codes, form.weight, source.padding).astype(np.float32) * form.scale + form.bias

    def _dense_conv2d(self, source: DenseConv2d, form: Form) -> Floats:
        if isinstance(form, FloatLinear):
            x = self._map(source.input, self._decoded(source.input)).transpose(2, 0, 1)
            return product(patches(x, source.kernel, source.stride, source.padding), form.weight) + form.bias
        assert isinstance(form, IntegerLinear)
        codes = self._map(source.input, self.tensors[source.input].astype(np.int64) - form.zero).transpose(2, 0, 1)
        windows = patches(codes, source.kernel, source.stride, source.padding)
        return (windows @ form.weight.T).astype(np.float32) * form.scale + form.bias

    def _pixel_shuffle(self, source: PixelShuffle, form: Form) -> Floats:
        x, scale = self._map(source.input, self._decoded(source.input)), source.scale
        height, width = x.shape[:2]
        parts = x.reshape(height, width, -1, scale, scale).transpose(0, 3, 1, 4, 2)
        return parts.reshape(height * width * scale**2, -1)

    def _bilinear(self, source: Bilinear, form: Form) -> Floats:
        x = self._map(source.input, self._decoded(source.input))
        return bilinear(x, *map_size(self.program.tensors[source.like])).reshape(-1, x.shape[2])

    def _average_pool(self, source: AveragePool, form: Form) -> Floats:
        x = self._map(source.input, self._decoded(source.input))
        return average_pool(x, source.height, source.width).reshape(-1, x.shape[2])

    def _map(self, name: str, x: np.ndarray) -> np.ndarray:
        """Returns the rows [height * width, C] of tensor `name` as a map [height, width, C]."""
        return x.reshape(*map_size(self.program.tensors[name]), -1)

    def _scan(self, source: Scan, form: Form) -> Floats:
        flip = slice(None, None, -1 if source.reverse else 1)
        u, delta, B = (self._decoded(name)[flip] for name in (source.u, source.delta, source.B))
        if isinstance(form, FixedScan | FusedScan | LadderScan):
            return integer_scan(form, u, delta, B, self._integers(source.C)[flip])[flip]
        assert isinstance(form, FloatScan)
        sequences = (
            x.reshape(-1, source.length or len(x), x.shape[1]) for x in (u, delta, B, self._decoded(source.C)[flip])
        )
        return self._rows(np.stack([float_scan(form, *parts) for parts in zip(*sequences, strict=True)]))[flip]

    # --- row instructions, all rows at once

    def _step(self, operation: Operation, step: Any, registers: dict[int, Floats]) -> None:
        if isinstance(step, Store):
            self.tensors[step.tensor] = self._stored(step, registers[step.src])
        elif isinstance(step, Load):
            rows = self._decoded(step.tensor)
            registers[step.dst] = rows if step.row is None else np.repeat(rows[step.row, None], operation.rows, 0)
        elif isinstance(step, Append):
            registers[step.dst] = np.concatenate([registers[step.a], registers[step.b]], axis=1)
        elif isinstance(step, Binary):
            registers[step.dst] = ELEMENTWISE[step.op].function(registers[step.a], registers[step.b])
        else:
            registers[step.dst] = _INSTRUCTIONS[type(step)](self, step, registers[step.src])

    def _slice(self, step: Slice, x: Floats) -> Floats:
        return x[:, step.offset : step.offset + step.width]

    def _unary(self, step: Unary, x: Floats) -> Floats:
        return ELEMENTWISE[step.op].function(x)

    def _turn(self, step: Turn, x: Floats) -> Floats:
        return arithmetic.quarter_turn(x)

    def _with_constant(self, step: WithConstant, x: Floats) -> Floats:
        value = self.bundle.constant(step.constant)
        value = value.reshape(value.shape[-2:] if value.ndim > 1 else value.shape)
        return x + value if step.op == "add_constant" else x * value

    def _add_values(self, step: AddValues, x: Floats) -> Floats:
        return x + np.array(step.values, np.float32)

    def _with_scalar(self, step: WithScalar, x: Floats) -> Floats:
        return x * np.float32(step.value)

    def _rms_norm(self, step: RmsNorm, x: Floats) -> Floats:
        return arithmetic.rms_norm(x, self.bundle.constant(step.weight), step.eps)

    def _layer_norm(self, step: LayerNorm, x: Floats) -> Floats:
        return arithmetic.layer_norm(x, self.bundle.constant(step.weight), self.bundle.constant(step.bias), step.eps)

    def _round(self, step: Round, x: Floats) -> Floats:
        codec, order = self.bundle.codec(step.site), _order(len(x), step.reverse, step.length)
        return codec.decode(codec.encode(x, order), order)

    def _rotate(self, step: Rotate, x: Floats) -> Floats:
        matrix, divisor = self.bundle.rotation(step.site)
        return arithmetic.rotate(x, np.float32(1) / divisor, matrix)

    def _stored(self, step: Store, x: Floats) -> np.ndarray:
        decl = self.program.tensors[step.tensor]
        if decl.site is None:
            return np.ascontiguousarray(x)
        codec = self.bundle.codec(decl.site)
        return codec.encode(x, self._order(step.tensor, decl.rows))


#: Fills register 0, by the type of the source. `Patches` is not here, since it needs the image; `Rows` fills nothing.
_SOURCES: dict[type, Callable[[Oracle, Any, Form], Floats]] = {
    Linear: Oracle._linear,
    Conv1d: Oracle._conv1d,
    Conv2d: Oracle._conv2d,
    DenseConv2d: Oracle._dense_conv2d,
    PixelShuffle: Oracle._pixel_shuffle,
    Bilinear: Oracle._bilinear,
    AveragePool: Oracle._average_pool,
    Transpose: Oracle._transpose,
    EnterWindows: Oracle._enter_windows,
    LeaveWindows: Oracle._leave_windows,
    Sample: Oracle._sample,
    MergeSamples: Oracle._merge_samples,
    Attention: Oracle._attention,
    Mean: Oracle._mean,
    Scan: Oracle._scan,
    Concat: Oracle._concat,
}

#: Computes the result of each instruction that reads one register, by its type.
_INSTRUCTIONS: dict[type, Callable[[Oracle, Any, Floats], Floats]] = {
    Slice: Oracle._slice,
    Unary: Oracle._unary,
    Turn: Oracle._turn,
    WithConstant: Oracle._with_constant,
    AddValues: Oracle._add_values,
    WithScalar: Oracle._with_scalar,
    RmsNorm: Oracle._rms_norm,
    LayerNorm: Oracle._layer_norm,
    Round: Oracle._round,
    Rotate: Oracle._rotate,
}


def patches(
    image: np.ndarray, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Returns the windows of image [channels, H, W] as rows [M, channels * kernel height * kernel width]."""
    image = np.pad(image, ((0, 0), (padding[0],) * 2, (padding[1],) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(image, kernel, (1, 2))[:, :: stride[0], :: stride[1]]
    return np.ascontiguousarray(windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1] * windows.shape[2], -1))


def _order(rows: int, reverse: bool, length: int | None) -> np.ndarray:
    order = np.arange(rows) % (length or rows)
    return order[::-1] if reverse else order


def _taps(x: np.ndarray, weight: np.ndarray, ahead: int) -> np.ndarray:
    """Returns sum_k x[t - K + 1 + ahead + k] weight[:, k], added in the order of k; x [B, L, C], weight [C, K]."""
    taps = weight.shape[1]
    padded = np.pad(x, ((0, 0), (taps - 1 - ahead, ahead), (0, 0)))
    total = np.zeros_like(x)
    for k in range(taps):
        total = total + padded[:, k : k + x.shape[1]] * weight[:, k]
    return total


def _windows(x: np.ndarray, weight: np.ndarray, padding: int) -> np.ndarray:
    """Returns x [H, W, C] times weight [C, K, K] summed over each window, as [positions, C].

    A window's terms are added row by row.
    """
    kernel = weight.shape[1]
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    height, width = x.shape[0] - kernel + 1, x.shape[1] - kernel + 1
    total = np.zeros((height, width, x.shape[2]), x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            total = total + x[i : i + height, j : j + width] * weight[:, i, j]
    return total.reshape(height * width, -1)
