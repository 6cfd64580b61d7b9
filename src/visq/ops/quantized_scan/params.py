"""How the tensors inside a quantized scan are rounded: three small frozen objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.ops._scan import Rounding, ScanInputs

MAX_TABLE = 256


@dataclass(frozen=True)
class StateRounding:
    """Rounds the hidden state to symmetric uniform codes with a rank-1 scale.

        scale[t, c, n]   = step[t] * (channel[c] * state[n])
        inverse[t, c, n] = (1 / step[t]) * (1 / (channel[c] * state[n]))
        hq = clamp(rint(h * inverse), qmin, qmax) * scale           (rint: half to even)

    Arguments:
        step: float32 [L] in scan order, or [1] for one scale at every step.
        channel: float32 [d_inner].
        state: float32 [N].
        qmin, qmax: range of the codes, such as -128 and 127.
        read_quantized: whether y_t reads hq_t (as hardware does) or the unrounded h_t. The next step always uses hq_t.
    """

    step: Tensor
    channel: Tensor
    state: Tensor
    qmin: int
    qmax: int
    read_quantized: bool = True


@dataclass(frozen=True)
class Uniform:
    """Rounds to symmetric uniform codes with one scale: clamp(rint(x * (1 / scale)), qmin, qmax) * scale.

    Arguments:
        channel: float32 [d_inner] > 0, which Bbar's channels are divided by before and multiplied by after; None for 1.
    """

    scale: float
    qmin: int
    qmax: int
    channel: Tensor | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise VisqError(f"Uniform: scale must be positive and finite, got {self.scale}")
        if self.qmin > self.qmax:
            raise VisqError(f"Uniform: qmin={self.qmin} is above qmax={self.qmax}")


@dataclass(frozen=True)
class Table:
    """Rounds to the nearest of K <= 256 values, float32 [K], sorted ascending.

    code(x) = searchsorted(midpoints, x, right=False), with midpoints[i] = (values[i] + values[i + 1]) / 2 in float32:
    the number of midpoints strictly below x, so an x on a midpoint takes the lower value. The clip range (for the
    straight-through gradient) is [values[0], values[-1]]. NaN stays NaN. `channel` as in `Uniform`.
    """

    values: Tensor
    channel: Tensor | None = None


def rounding_of(
    state: StateRounding | None, abar: Uniform | Table | None, bbar: Uniform | Table | None, length: int
) -> Rounding:
    """Returns the flat form of what rounds the inside of a scan over `length` steps."""
    abar_table, abar_uniform = _flat(abar)
    bbar_table, bbar_uniform = _flat(bbar)
    factors = (abar_table, abar_uniform, bbar_table, bbar_uniform)
    if state is None:
        return Rounding(None, None, None, [0, 0], True, *factors)
    step = state.step
    if step.shape == (1,) and length != 1:
        step = step.expand(length)
    return Rounding(step, state.channel, state.state, [state.qmin, state.qmax], state.read_quantized, *factors)


def _flat(factor: Uniform | Table | None) -> tuple[Tensor | None, list[float]]:
    """(table, []) or (None, [scale, lowest code, highest code]) of a factor's rounding; (None, []) for none."""
    if factor is None:
        return None, []
    if isinstance(factor, Table):
        return factor.values, []
    return None, [factor.scale, float(factor.qmin), float(factor.qmax)]


def absorb(bbar: Uniform | Table | None, inputs: ScanInputs) -> ScanInputs:
    """Returns the inputs of the same scan whose Bbar is already divided by `bbar.channel` =: s.

    Abar = exp((delta / s) (A s)) and Bbar u = ((delta / s) B) (u s): a scale per channel is a scale per tensor of
    another scan.
    """
    if bbar is None or bbar.channel is None:
        return inputs
    s, A = bbar.channel, inputs.A
    if s.dtype != torch.float32 or s.shape != A.shape[:1]:
        raise VisqError(f"bbar.channel must be float32 [d_inner] = {list(A.shape[:1])}, got {_kind(s)}")
    return inputs._replace(u=inputs.u * s, delta=inputs.delta / s, A=A * s[:, None])


def check_rounding(op: str, inputs: ScanInputs, rounding: Rounding) -> None:
    """Checks shapes, dtypes and the range of the codes; values are looked at in `check_rounding_values`."""
    step, channel, state = rounding.step, rounding.channel, rounding.state
    if step is not None and channel is not None and state is not None:
        _, length, channels, states = inputs.sizes
        _check_state(op, step, channel, state, (length, channels, states), rounding.state_range)
    _check_table(op, "abar", rounding.abar_table)
    _check_table(op, "bbar", rounding.bbar_table)


def check_rounding_values(op: str, rounding: Rounding) -> None:
    """Requires positive finite scales and finite ascending tables."""
    for name, x in (("step", rounding.step), ("channel", rounding.channel), ("state", rounding.state)):
        if x is not None and not bool(((x > 0) & torch.isfinite(x)).all()):
            raise VisqError(f"{op}: state.{name} must be positive and finite everywhere")
    for name, table in (("abar", rounding.abar_table), ("bbar", rounding.bbar_table)):
        if table is not None and not bool(torch.isfinite(table).all() and (table[1:] >= table[:-1]).all()):
            raise VisqError(f"{op}: {name} table must be finite and sorted ascending")


def _check_table(op: str, name: str, table: Tensor | None) -> None:
    if table is None:
        return
    if table.dtype != torch.float32 or table.dim() != 1 or not 1 <= table.shape[0] <= MAX_TABLE:
        raise VisqError(f"{op}: {name} table must be float32 [K], 1 <= K <= {MAX_TABLE}, got {_kind(table)}")


def _check_state(
    op: str, step: Tensor, channel: Tensor, state: Tensor, sizes: tuple[int, int, int], codes: Sequence[int]
) -> None:
    """Checks the factors of the state's scale against (tokens, channels, states)."""
    length, channels, states = sizes
    if codes[0] > codes[1]:
        raise VisqError(f"{op}: state.qmin={codes[0]} is above state.qmax={codes[1]}")
    for name, x, size, spelled in (("channel", channel, channels, "d_inner"), ("state", state, states, "N")):
        if x.dtype != torch.float32 or tuple(x.shape) != (size,):
            raise VisqError(f"{op}: state.{name} must be float32 [{spelled}] = [{size}], got {_kind(x)}")
    if step.dtype != torch.float32 or step.dim() != 1:
        raise VisqError(f"{op}: state.step must be float32 [L] = [{length}], got {_kind(step)}")
    if step.shape[0] != length:
        raise VisqError(f"{op}: per-step state scales were made for L={step.shape[0]}, but the input has L={length}")


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
