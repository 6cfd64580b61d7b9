"""Lowers what LocalVim and LocalVMamba add to their families: orders by windows, and rotations by position."""

from __future__ import annotations

from visq.integer import operations as ir
from visq.lowering.context import Lowering
from visq.lowering.layers import lowers
from visq.lowering.values import LoweringError, Value
from visq.models.local_scan import EnterWindowOrder, LeaveWindowOrder
from visq.models.localvim import QuarterTurn


@lowers(EnterWindowOrder)
def enter_order(lowering: Lowering, module: EnterWindowOrder, name: str, x: Value, height: int, width: int) -> Value:
    """Lowers the way into windows, which is nothing where one window is the map.

    Raises:
        LoweringError: the map is not square.
    """
    if _one_window(module, name, height, width):
        return x
    source = ir.EnterWindows(input=lowering.builder.tensor(x), side=height, window=module.window)
    return lowering.builder.operation(name, source, (module.count(height) * module.window) ** 2, x.width)


@lowers(LeaveWindowOrder)
def leave_order(lowering: Lowering, module: LeaveWindowOrder, name: str, x: Value, height: int, width: int) -> Value:
    """Lowers the way out of windows. Raises LoweringError where the map is not square."""
    if _one_window(module, name, height, width):
        return x
    source = ir.LeaveWindows(input=lowering.builder.tensor(x), side=height, window=module.window)
    return lowering.builder.operation(name, source, height * width, x.width)


def _one_window(module: EnterWindowOrder, name: str, height: int, width: int) -> bool:
    if height != width:
        raise LoweringError(f"{name}: windows of a map of {height} x {width}, which is not square")
    return height == module.window


@lowers(QuarterTurn, by_row=True)
def quarter_turn(lowering: Lowering, module: QuarterTurn, name: str, x: Value) -> Value:
    return Value("turn", x.rows, x.width, (x,), {}, x.reverse)
