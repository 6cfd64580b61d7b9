"""Row instructions in ONNX: what an operation's body does with one register."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from visq.export.codes import encode
from visq.export.graph import Graph
from visq.integer.arithmetic import rotate
from visq.integer.operations import (
    AddValues,
    LayerNorm,
    Operation,
    RmsNorm,
    Rotate,
    Round,
    Slice,
    Turn,
    Unary,
    WithConstant,
    WithScalar,
)
from visq.runtime.bundle import Bundle


def _silu(graph: Graph, x: str) -> str:
    return graph.mul(x, graph.node("Sigmoid", x))


def _softplus(graph: Graph, x: str) -> str:
    """max(x, log(1 + e^min(x, 20))): runtimes have fast kernels for these, and beyond 20 the function is x."""
    small = graph.node("Min", x, graph.constant(np.float32(20)))
    one = graph.constant(np.float32(1))
    return str(graph.node("Max", x, graph.node("Log", graph.add(one, graph.node("Exp", small)))))


#: ONNX forms of the elementwise row instructions with one operand.
UNARY: dict[str, Callable[[Graph, str], str]] = {
    "silu": _silu,
    "softplus": _softplus,
    "gelu": lambda graph, x: str(graph.node("Gelu", x)),
    "gelu_tanh": lambda graph, x: str(graph.node("Gelu", x, approximate="tanh")),
    "sigmoid": lambda graph, x: str(graph.node("Sigmoid", x)),
    "relu": lambda graph, x: str(graph.node("Relu", x)),
    "neg": lambda graph, x: str(graph.node("Neg", x)),
}


def _slice(graph: Graph, bundle: Bundle, operation: Operation, step: Slice, x: str) -> str:
    return graph.slice(x, 2, step.offset, step.offset + step.width)


def _unary(graph: Graph, bundle: Bundle, operation: Operation, step: Unary, x: str) -> str:
    return UNARY[step.op](graph, x)


def _turn(graph: Graph, bundle: Bundle, operation: Operation, step: Turn, x: str) -> str:
    pairs = graph.node("Reshape", x, graph.constant([0, 0, -1, 2], np.int64))
    swapped = graph.node("Gather", pairs, graph.constant([1, 0], np.int64), axis=3)
    turned = graph.mul(swapped, graph.constant(np.array([-1, 1], np.float32)))
    return str(graph.node("Reshape", turned, graph.constant([0, 0, -1], np.int64)))


def _with_constant(graph: Graph, bundle: Bundle, operation: Operation, step: WithConstant, x: str) -> str:
    value = bundle.constant(step.constant)
    stored = graph.constant(value.reshape(value.shape[-2:] if value.ndim > 1 else value.shape))
    return graph.add(x, stored) if step.op == "add_constant" else graph.mul(x, stored)


def _add_values(graph: Graph, bundle: Bundle, operation: Operation, step: AddValues, x: str) -> str:
    return graph.add(x, graph.constant(np.array(step.values, np.float32)))


def _with_scalar(graph: Graph, bundle: Bundle, operation: Operation, step: WithScalar, x: str) -> str:
    return graph.mul(x, graph.constant(np.float32(step.value)))


def _rms_norm(graph: Graph, bundle: Bundle, operation: Operation, step: RmsNorm, x: str) -> str:
    mean = graph.node("ReduceMean", graph.mul(x, x), graph.constant([-1], np.int64), keepdims=1)
    root = graph.node("Sqrt", graph.add(mean, graph.constant(np.float32(step.eps))))
    return graph.mul(graph.node("Div", x, root), graph.constant(bundle.constant(step.weight)))


def _layer_norm(graph: Graph, bundle: Bundle, operation: Operation, step: LayerNorm, x: str) -> str:
    weight, bias = (graph.constant(bundle.constant(c)) for c in (step.weight, step.bias))
    return str(graph.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=step.eps))


def _round(graph: Graph, bundle: Bundle, operation: Operation, step: Round, x: str) -> str:
    sequences = operation.rows // (step.length or operation.rows)
    return encode(graph, step.site, bundle.codec(step.site), x, step.reverse, sequences).decoded(graph)


def _rotate(graph: Graph, bundle: Bundle, operation: Operation, step: Rotate, x: str) -> str:
    matrix, divisor = bundle.rotation(step.site)
    dense = rotate(np.eye(len(divisor), dtype=np.float32), np.float32(1) / divisor, matrix)
    return str(graph.node("MatMul", x, graph.constant(dense)))


#: (graph, bundle, operation, instruction, x [B, rows, width]) -> the result of an instruction that reads one register.
INSTRUCTIONS: dict[type, Callable[[Graph, Bundle, Operation, Any, str], str]] = {
    Slice: _slice,
    Unary: _unary,
    Turn: _turn,
    WithConstant: _with_constant,
    AddValues: _add_values,
    WithScalar: _with_scalar,
    RmsNorm: _rms_norm,
    LayerNorm: _layer_norm,
    Round: _round,
    Rotate: _rotate,
}
