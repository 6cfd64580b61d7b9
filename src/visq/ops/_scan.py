"""The arguments that all scans share: one tuple of tensors, one of roundings, and their forms for torch and C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visq.ops import _native

#: Gradients of u, delta, A, B, C.
Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class ScanInputs(NamedTuple):
    """u, delta [B, L, d_inner]; A [d_inner, N]; B, C [B, L, N]; all float32 and in scan order."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor

    @property
    def device(self) -> str:
        """The device type, as `backends.call` takes it."""
        return self.u.device.type

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(images, tokens, channels, states)."""
        images, tokens, channels = self.u.shape
        return images, tokens, channels, self.A.shape[1]


class Rounding(NamedTuple):
    """How the inside of a scan is rounded, flat enough for an operator's schema; None and empty lists round nothing.

    Attributes:
        step [L], channel [d_inner], state [N]: factors of the state's scale.
        state_range: (lowest, highest) code of the state.
        read_quantized: whether y reads the rounded state.
        abar_table, bbar_table: [K] ascending values.
        abar_uniform, bbar_uniform: (scale, lowest code, highest code), or empty.
    """

    step: Tensor | None
    channel: Tensor | None
    state: Tensor | None
    state_range: Sequence[int]
    read_quantized: bool
    abar_table: Tensor | None
    abar_uniform: Sequence[float]
    bbar_table: Tensor | None
    bbar_uniform: Sequence[float]


#: The two tuples in the language of operator schemas.
INPUTS_SCHEMA = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C"
ROUNDING_SCHEMA = (
    "Tensor? step, Tensor? channel, Tensor? state, SymInt[] state_range, bool read_quantized, "
    "Tensor? abar_table, float[] abar_uniform, Tensor? bbar_table, float[] bbar_uniform"
)

_INPUTS, _ROUNDING = len(ScanInputs._fields), len(Rounding._fields)


def unflatten(args: Sequence[Any]) -> tuple[ScanInputs, Rounding, tuple[Any, ...]]:
    """Returns the two tuples that an operator's flat arguments begin with, and the rest."""
    end = _INPUTS + _ROUNDING
    return ScanInputs(*args[:_INPUTS]), Rounding(*args[_INPUTS:end]), tuple(args[end:])


def like_inputs(inputs: ScanInputs) -> Grads:
    """Returns empty gradients of the shapes of the inputs."""
    u, delta, A, B, C = (torch.empty(x.shape, dtype=torch.float32, device=x.device) for x in inputs)
    return u, delta, A, B, C


def addresses(grads: Grads) -> tuple[int, int, int, int, int]:
    """Returns where the gradients lie, as the extension takes them."""
    u, delta, A, B, C = (x.data_ptr() for x in grads)
    return u, delta, A, B, C


_KINDS = {"none": 0, "uniform": 1, "table": 2}


class NativeScan:
    """A scan's arguments as the extension takes them; keeps the tensors behind the addresses alive.

    Attributes:
        arguments: sizes, inputs and roundings, the first arguments of every scan in C++.
    """

    def __init__(self, inputs: ScanInputs, rounding: Rounding | None = None) -> None:
        self._alive: list[Tensor] = []
        u, delta, B, C = (self.rows(x) for x in (inputs.u, inputs.delta, inputs.B, inputs.C))
        self.arguments = (inputs.sizes, u, delta, self.address(inputs.A), B, C, self._rounding(rounding))

    def rows(self, x: Tensor) -> _native.Rows:
        """Returns (address, batch stride, row stride) of x [B, L, C]."""
        found, x = _native.native_rows(x)
        self._alive.append(x)
        return found

    def address(self, x: Tensor | None) -> int:
        """Returns the address of x, made contiguous; 0 for None."""
        if x is None:
            return 0
        self._alive.append(x.contiguous())
        return self._alive[-1].data_ptr()

    def _rounding(self, r: Rounding | None) -> tuple[Any, Any, Any]:
        if r is None:
            return (0, 0, 0, 0.0, 0.0, False), self._factor(None, ()), self._factor(None, ())
        low, high = r.state_range
        factors = (self.address(x) for x in (r.step, r.channel, r.state))
        state = (*factors, float(low), float(high), r.read_quantized)
        return state, self._factor(r.abar_table, r.abar_uniform), self._factor(r.bbar_table, r.bbar_uniform)

    def _factor(self, table: Tensor | None, uniform: Sequence[float]) -> tuple[int, float, float, float, int, int, int]:
        if table is not None:
            addresses = self.address(table), self.address(midpoints(table))
            return (_KINDS["table"], 1.0, 0.0, 0.0, *addresses, table.shape[0] - 1)
        if uniform:
            scale, low, high = uniform
            return (_KINDS["uniform"], scale, low, high, 0, 0, 0)
        return (_KINDS["none"], 1.0, 0.0, 0.0, 0, 0, 0)


def midpoints(values: Tensor) -> Tensor:
    """Returns the thresholds between neighbouring table values, [K - 1]."""
    return (values[1:] + values[:-1]) * 0.5
