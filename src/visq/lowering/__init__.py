"""Lowers a quantized model to the integer program that the engine runs."""

from visq.lowering.lower import lower
from visq.lowering.values import LoweringError

__all__ = ["LoweringError", "lower"]
