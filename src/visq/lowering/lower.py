"""Traces a network with torch.fx, walks its nodes and writes the program."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from visq.integer.program import Program
from visq.lowering import attention, orders, sampling  # noqa: F401  (they register their layers)
from visq.lowering.context import Lowering
from visq.lowering.layers import lowering_of
from visq.lowering.rules import FUNCTIONS, OF_MAPS, RULES
from visq.lowering.values import Image, LoweringError, Planes, has_map
from visq.models.layers import CheckImages, DropPath
from visq.quant.site import site_name


def lower(model: nn.Module, size: tuple[int, int] | None = None, *, stored_windows: bool = False) -> Program:
    """Returns the integer program of a quantized model in eval mode.

    Arguments:
        size: (height, width) of its images; by default those of the network's configuration.
        stored_windows: writes the form of older programs, which has the same bits (`Lowering`).
    Raises:
        LoweringError: the engine has no form for a node; the message names it.
    """
    return _Walk(model, size, stored_windows).run()


#: Modules that lowering skips: inference drops no paths, and the engine checks images itself.
PASSED = (CheckImages, DropPath)


class _Tracer(fx.Tracer):
    """A tracer that keeps layers with sites whole and traces everything around them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return lowering_of(type(m)) is not None or isinstance(m, PASSED)


class _Walk(Lowering):
    """A walk over the nodes of a graph; `values` holds the lowered value of each node."""

    def __init__(self, model: Any, size: tuple[int, int] | None, stored_windows: bool) -> None:
        super().__init__(model, size, stored_windows)
        self.modules = dict(model.named_modules())
        self.values: dict[fx.Node, Any] = {}

    def run(self) -> Program:
        """Traces the network and lowers every node. Raises LoweringError."""
        try:
            graph = _Tracer().trace(self.model)
        except fx.proxy.TraceError as error:
            raise LoweringError(f"the network's forward pass cannot be traced: {error}") from error
        for node in graph.nodes:
            arguments = fx.node.map_arg(node.args, lambda n: self.values[n])
            options = fx.node.map_arg(node.kwargs, lambda n: self.values[n])
            if node.op == "output":
                result = arguments[0]
                return self.builder.finish(
                    result.map if isinstance(result, Planes) else result, self.channels, self.size
                )
            self.values[node] = self._node(node, arguments, options)
        raise LoweringError("the network returns nothing")

    def _node(self, node: fx.Node, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        target: Any = node.target
        if node.op == "placeholder":
            return Image()
        if node.op == "get_attr":
            return self.parameter(target)
        if node.op == "call_module":
            module = self.modules[target]
            if isinstance(module, PASSED):
                return arguments[0]
            layer = lowering_of(type(module))
            assert layer is not None  # the tracer went through every other module
            return layer(self, module, site_name(target), *arguments)
        name = target if node.op == "call_method" else FUNCTIONS.get(target)
        if name not in RULES:
            raise LoweringError(f"the engine has no form for {node.op} {target} ({node.name})")
        if name not in OF_MAPS and has_map(arguments):
            raise LoweringError(f"the engine has no form for {name} of a map ({node.name})")
        return RULES[name](self, *arguments, **options)
