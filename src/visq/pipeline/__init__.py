"""From a trained network to a checked, quantized one: the public entry."""

from visq.pipeline.quantize import Quantized, check_applies, quantize, work_folder

__all__ = ["Quantized", "check_applies", "quantize", "work_folder"]
