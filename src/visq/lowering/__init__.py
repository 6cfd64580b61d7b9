"""From a quantized model to the integer program the engine runs."""

from visq.lowering.lower import lower

__all__ = ["lower"]
