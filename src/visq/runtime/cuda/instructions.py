"""The row instructions that compute each element by itself, as Triton expressions: `visq.integer.instructions` here."""

from __future__ import annotations

#: By name of an instruction, the expression of its result; {a} and {b} are its operands.
EXPRESSIONS = {
    "silu": "k.silu({a})",
    "softplus": "k.softplus({a})",
    "gelu": "k.gelu({a})",
    "gelu_tanh": "k.gelu_tanh({a})",
    "sigmoid": "k.sigmoid({a})",
    "relu": "k.positive({a})",
    "neg": "-{a}",
    "add": "{a} + {b}",
    "mul": "{a} * {b}",
}
