"""Lists the row instructions that compute each element by itself, in one table.

A program names them, the oracle calls them, the roofline counts them, and lowering and simulation find them by the name
a layer carries (`visq.models.layers.Elementwise`). The C++ engine has the same names in `csrc`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from visq.integer import arithmetic
from visq.integer.arithmetic import EXP2, GELU, LOG1P, Floats


@dataclass(frozen=True)
class ElementwiseInstruction:
    """An elementwise row instruction.

    Attributes:
        operands: how many registers it reads, 1 or 2.
        function: its definition on float32 arrays of one shape.
        cost: float32 additions and multiplications for each element.
    """

    operands: int
    function: Callable[..., Floats]
    cost: int


#: Float32 additions and multiplications of `arithmetic.exp2`: a subtraction, a polynomial and a power of two.
EXP2_COST = 1 + 2 * len(EXP2) + 1

ELEMENTWISE: dict[str, ElementwiseInstruction] = {
    "silu": ElementwiseInstruction(1, arithmetic.silu, 1 + EXP2_COST + 2),
    "softplus": ElementwiseInstruction(1, arithmetic.softplus, 1 + EXP2_COST + 3 + 2 * (len(LOG1P) - 1) + 2),
    "gelu": ElementwiseInstruction(1, arithmetic.gelu, 3 + 2 * (len(GELU) - 1) + 2 + 2 + EXP2_COST + 2),
    "gelu_tanh": ElementwiseInstruction(1, arithmetic.gelu_tanh, 4 + EXP2_COST + 2),
    "sigmoid": ElementwiseInstruction(1, arithmetic.sigmoid, 1 + EXP2_COST + 2),
    "relu": ElementwiseInstruction(1, arithmetic.relu, 1),
    "neg": ElementwiseInstruction(1, np.negative, 0),
    "add": ElementwiseInstruction(2, np.add, 1),
    "mul": ElementwiseInstruction(2, np.multiply, 1),
}

#: Names by the number of registers an instruction reads.
UNARY = tuple(name for name, found in ELEMENTWISE.items() if found.operands == 1)
BINARY = tuple(name for name, found in ELEMENTWISE.items() if found.operands == 2)
