"""Arithmetic of the field: one folder per op, `naive.py` (the readable oracle) beside the C++ one, one dispatcher."""

from visq.ops import exact
from visq.ops.causal_conv1d import causal_conv1d
from visq.ops.fake_quantize import fake_quantize
from visq.ops.fixed_scan import fixed_scan
from visq.ops.quantized_scan import quantized_scan
from visq.ops.quantized_scan.params import StateRounding, Table, Uniform
from visq.ops.scan_states import scan_states
from visq.ops.search_state_scales import search_state_scales
from visq.ops.selective_scan import selective_scan
from visq.ops.similarity_sums import similarity_sums

__all__ = [
    "causal_conv1d",
    "exact",
    "fake_quantize",
    "fixed_scan",
    "quantized_scan",
    "scan_states",
    "search_state_scales",
    "selective_scan",
    "similarity_sums",
    "StateRounding",
    "Table",
    "Uniform",
]
