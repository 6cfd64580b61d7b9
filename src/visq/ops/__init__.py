"""Arithmetic of the field: one folder per op, `naive.py` (the readable oracle) beside the C++ one, one dispatcher."""

from visq.ops.causal_conv1d import causal_conv1d
from visq.ops.selective_scan import selective_scan

__all__ = ["causal_conv1d", "selective_scan"]
