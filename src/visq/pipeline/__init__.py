"""Turns a trained network into a checked, quantized one: the public entry."""

from visq.pipeline.draw import draw, drawn_from
from visq.pipeline.quantize import Quantized, check_applies, quantize, work_folder

__all__ = ["Quantized", "check_applies", "draw", "drawn_from", "quantize", "work_folder"]
