"""Builds an ONNX graph node by node. Needs the package `onnx`; import it only where a graph is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from visq.errors import VisqError

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise VisqError(f"writing ONNX needs an extra: pip install 'visq[onnx]' ({error})") from error

#: The newest operator set that released onnxruntime and OpenVINO both take; 21 brought 4-bit integers.
OPSET = 21
IR_VERSION = 10

#: Where `Slice` stops when it goes to an end, forwards and backwards.
_END, _BEGIN = np.iinfo(np.int64).max, np.iinfo(np.int64).min


class Graph:
    """Nodes and constants under unique names. A value is the name of a node's output.

    Equal constants are stored once.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._stored: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
        self._count = 0

    def name(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node and returns its output, or a tuple of them."""
        names = tuple(self.name(kind.lower()) for _ in range(outputs))
        self.nodes.append(helper.make_node(kind, list(inputs), list(names), name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        """Returns the name of a stored array."""
        array: np.ndarray = np.asarray(value, dtype, order="C")
        key = (array.tobytes(), array.dtype.str, array.shape)
        if key not in self._stored:
            self._stored[key] = self.name("constant")
            self.constants[self._stored[key]] = numpy_helper.from_array(array, self._stored[key])
        return self._stored[key]

    def int4(self, codes: np.ndarray) -> str:
        """Returns the name of stored 4-bit codes, two to a byte."""
        name = self.name("int4")
        values = codes.astype(np.int8).reshape(-1)
        padded = np.pad(values, (0, len(values) % 2)).view(np.uint8) & 0xF
        packed = (padded[::2] | (padded[1::2] << 4)).astype(np.uint8)
        self.constants[name] = helper.make_tensor(name, TensorProto.INT4, codes.shape, packed.tobytes(), raw=True)
        return name

    # --- shapes

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return str(self.node("Reshape", x, self.constant(shape, np.int64)))

    def transpose(self, x: str, order: Sequence[int]) -> str:
        return str(self.node("Transpose", x, perm=list(order)))

    def slice(self, x: str, axis: int, first: int, stop: int = _END, step: int = 1) -> str:
        vectors = (self.constant([value], np.int64) for value in (first, stop, axis, step))
        starts, ends, axes, steps = vectors
        return str(self.node("Slice", x, starts, ends, axes, steps))

    def flip(self, x: str, axis: int) -> str:
        return self.slice(x, axis, -1, _BEGIN, -1)

    def pad(self, x: str, before: Sequence[int], after: Sequence[int]) -> str:
        """Puts zeros around x; `before` and `after` count them for each axis."""
        if not any((*before, *after)):
            return x
        return str(self.node("Pad", x, self.constant([*before, *after], np.int64)))

    # --- arithmetic

    def add(self, a: str, b: str) -> str:
        return str(self.node("Add", a, b))

    def mul(self, a: str, b: str) -> str:
        return str(self.node("Mul", a, b))

    def scaled(self, x: str, factor: np.ndarray) -> str:
        """Returns x times a constant; x itself where the constant is one."""
        return x if (factor == 1).all() else self.mul(x, self.constant(factor))

    # --- the whole

    def model(self, inputs: Sequence[tuple[str, list[Any]]], outputs: Sequence[tuple[str, list[Any]]]) -> Any:
        """Returns the checked model of this graph; inputs and outputs are (name, shape) of float32 tensors."""
        info, out = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values]
            for values in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, "visq", info, out, initializer=list(self.constants.values()))
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="visq", opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def body(graph: Graph, name: str, inputs: Sequence[tuple[str, list[Any]]], outputs: Sequence[str]) -> Any:
    """Returns a graph as the body of a `Scan`; `outputs` are its values in order."""
    info = [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape) for value, shape in inputs]
    out = [helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in outputs]
    used = {value for node in graph.nodes for value in node.input}
    constants = [constant for name, constant in graph.constants.items() if name in used]
    return helper.make_graph(graph.nodes, name, info, out, initializer=constants)
