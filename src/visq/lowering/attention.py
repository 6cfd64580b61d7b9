"""Lowers self-attention, windows, and the norms that must be folded before."""

from __future__ import annotations

from visq.integer import operations as ir
from visq.lowering.context import Lowering
from visq.lowering.layers import lowers
from visq.lowering.values import LoweringError, Map, Value
from visq.models.attention import Attend
from visq.models.batch_norm import BatchNorm
from visq.models.windows import EnterWindows, JoinWindows, LeaveWindows, SplitWindows
from visq.quant.site import Site


@lowers(Attend)
def attend(lowering: Lowering, module: Attend, name: str, q: Value, k: Value, v: Value) -> Value:
    """Rounds the operands and attends. Raises LoweringError for a flipped sequence or a rotated operand."""
    operands = (("q", q, module.site_q), ("k", k, module.site_k), ("v", v, module.site_v))
    rounded = {key: lowering.site(x, f"{name}.{key}", site) for key, x, site in operands}
    if any(x.reverse or x.rotated for x in rounded.values()):
        raise LoweringError(f"{name}: attention over a flipped or rotated sequence")

    def inner(key: str, site: Site) -> str | None:
        return None if site.quantizer is None else f"{name}.{key}"

    source = ir.Attention(
        q=lowering.builder.tensor(rounded["q"]),
        k=lowering.builder.tensor(rounded["k"]),
        v=lowering.builder.tensor(rounded["v"]),
        heads=module.heads,
        length=q.length or q.rows,
        scores=inner("scores", module.site_scores),
        probs=inner("probs", module.site_probs),
    )
    return lowering.builder.operation(name, source, q.rows, q.width, length=q.length)


@lowers(EnterWindows)
def enter_windows(lowering: Lowering, module: EnterWindows, name: str, x: Map) -> Value:
    windows = module.windows
    if windows.side == windows.window:
        return x.value
    source = ir.EnterWindows(input=lowering.builder.tensor(x.value), side=windows.side, window=windows.window)
    return lowering.builder.operation(name, source, windows.count * windows.window**2, x.value.width)


@lowers(LeaveWindows)
def leave_windows(lowering: Lowering, module: LeaveWindows, name: str, x: Value) -> Map:
    windows = module.windows
    if windows.side == windows.window:
        return Map(x, windows.side, windows.side)
    source = ir.LeaveWindows(input=lowering.builder.tensor(x), side=windows.side, window=windows.window)
    return Map(lowering.builder.operation(name, source, windows.side**2, x.width), windows.side, windows.side)


@lowers(SplitWindows)
def split_windows(lowering: Lowering, module: SplitWindows, name: str, x: Value) -> Value:
    """Returns the same rows as a sequence for each window."""
    if module.count == 1:
        return x
    return Value("slice", x.rows, x.width, (x,), {"offset": 0}, x.reverse, length=x.rows // module.count)


@lowers(JoinWindows)
def join_windows(lowering: Lowering, module: JoinWindows, name: str, x: Value) -> Value:
    """Returns the same rows as one sequence."""
    return x if module.count == 1 else Value("slice", x.rows, x.width, (x,), {"offset": 0}, x.reverse, length=0)


@lowers(BatchNorm)
def batch_norm(lowering: Lowering, module: BatchNorm, name: str, x: Map | Value) -> Value:
    raise LoweringError(f"{name}: a batch norm must be folded first, as load_model does")
