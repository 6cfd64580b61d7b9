"""Defines the context that lowering functions get: the network, the builder, and how to combine values."""

from __future__ import annotations

from typing import Any

from visq.integer.operations import Constant
from visq.lowering.builder import Builder
from visq.lowering.values import LoweringError, Parameter, Value, Zeros
from visq.models.family import image_size
from visq.quant.rotated import RotatedQuantizer
from visq.quant.site import Site


class Lowering:
    """One walk over a traced network.

    Attributes:
        size, channels: (height, width) of the image [pixels], and its channels.
        builder: writes the program.
        ladders: the sites lowered so far that hold a decay ladder.
        stored_windows: convolutions over maps store their windows, as in programs made before `dense_conv2d`.
    """

    def __init__(self, model: Any, size: tuple[int, int] | None = None, stored_windows: bool = False) -> None:
        side = image_size(model.config)
        if size is None:
            if side is None:
                raise LoweringError("a program is made for images of one size, and this network takes any")
            size = side, side
        self.model, self.channels, self.size = model, model.config.channels, size
        self.builder, self.stored_windows = Builder(), stored_windows
        self.ladders: set[str] = set()

    def site(self, x: Value, name: str, site: Site) -> Value:
        """Returns x rounded by a site's quantizer, or x itself if the site has none."""
        if site.quantizer is None:
            return x
        rotated = isinstance(site.quantizer, RotatedQuantizer)
        return Value("round", x.rows, x.width, (x,), {"site": name, "rotated": rotated}, x.reverse)

    def unary(self, function: str, x: Value) -> Value:
        """Applies a function of one argument (`silu`, `neg`, ...) to each element of x."""
        return Value("unary", x.rows, x.width, (x,), {"function": function}, x.reverse)

    def binary(self, function: str, a: Any, b: Any) -> Any:
        """Combines two operands with `add` or `mul`; each may be a value, a parameter, a number or zeros.

        Raises:
            LoweringError: the operands differ in shape or direction, or have no common instruction.
        """
        if isinstance(a, Zeros) or isinstance(b, Zeros):
            if function != "add":
                raise LoweringError("a product with zeros")
            return b if isinstance(a, Zeros) else a
        if isinstance(a, Parameter | int | float):
            a, b = b, a
        if isinstance(a, Value) and isinstance(b, int | float) and function == "mul":
            return Value("scalar", a.rows, a.width, (a,), {"value": float(b)}, a.reverse)
        if isinstance(a, Value) and isinstance(b, Parameter):
            self._check_constant(a, b)
            parameters = {"function": f"{function}_constant", "constant": b.constant}
            return Value("constant", a.rows, a.width, (a,), parameters, a.reverse)
        if not (isinstance(a, Value) and isinstance(b, Value)) or (a.rows, a.width) != (b.rows, b.width):
            raise LoweringError(f"{function} of operands that do not fit")
        if a.reverse != b.reverse:
            raise LoweringError(f"{function} of a sequence and one that runs the other way")
        return Value("binary", a.rows, a.width, (a, b), {"function": function}, a.reverse)

    def append(self, a: Value, b: Value) -> Value:
        """Returns the channels of a, then those of b. Raises LoweringError where rows or directions differ."""
        if (a.rows, a.reverse) != (b.rows, b.reverse):
            raise LoweringError("channels beside those of another sequence")
        return Value("append", a.rows, a.width + b.width, (a, b), {}, a.reverse)

    def _check_constant(self, x: Value, parameter: Parameter) -> None:
        shape = tuple(size for size in parameter.shape if size != 1)
        if shape != (x.width,) and (shape != (x.rows, x.width) or x.reverse):
            raise LoweringError(f"{parameter.constant.name} {parameter.shape} does not fit [{x.rows}, {x.width}]")

    def parameter(self, target: str) -> Parameter:
        """Returns the network's parameter called `target`."""
        parameter = self.model.get_parameter(target)
        return Parameter(Constant(name=target), tuple(parameter.shape))
