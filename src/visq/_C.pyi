"""C++ kernels (csrc/python). Addresses are Tensor.data_ptr(); call them through visq.ops, which checks bounds."""

from typing import Any

_Rows = tuple[int, int, int]  # address, batch stride, row stride
_Sizes = tuple[int, int, int, int]
_State = tuple[int, int, int, float, float, bool]  # step, channel, state, qmin, qmax, read_quantized
_Quantizer = tuple[int, float, float, float, int, int, int]  # kind, scale, qmin, qmax, values, thresholds, count
_Quant = tuple[_State, _Quantizer, _Quantizer]

def has_engine_isa(name: str, /) -> bool: ...
def file_checksum(file: Any, /) -> int: ...

class Engine:
    """A program made ready to run (csrc/program/engine.h), from the bytes of a flat file. Errors are ValueError."""

    def __init__(self, isa: str, file: Any) -> None: ...
    def __getattr__(self, name: str) -> Any: ...

def has_isa(name: str, /) -> bool: ...
def set_isa(name: str, /) -> None: ...
def get_isa() -> str: ...
def use_openmp(gomp_parallel: int, /) -> None: ...
def scan_forward(
    n: _Sizes, u: _Rows, delta: _Rows, A: int, B: _Rows, C: _Rows, q: _Quant, y: int, threads: int, /
) -> None: ...
def scan_backward(
    n: _Sizes,
    u: _Rows,
    delta: _Rows,
    A: int,
    B: _Rows,
    C: _Rows,
    q: _Quant,
    grad_y: _Rows,
    grad_u: int,
    grad_delta: int,
    grad_A: int,
    grad_B: int,
    grad_C: int,
    threads: int,
    /,
) -> None: ...
def scan_states(n: _Sizes, u: _Rows, delta: _Rows, A: int, B: _Rows, h: int, threads: int, /) -> None: ...
def conv_forward(n: _Sizes, x: _Rows, weight: int, bias: int, y: int, threads: int, /) -> None: ...
def conv_backward(
    n: _Sizes, x: _Rows, weight: int, grad_y: _Rows, grad_x: int, grad_weight: int, grad_bias: int, threads: int, /
) -> None: ...
def fake_quantize(
    n: _Sizes,
    x: _Rows,
    scale: int,
    zero: int,
    smooth: int,
    qmin: float,
    qmax: float,
    axis: int,
    y: int,
    threads: int,
    /,
) -> None: ...
def similarity_sums(
    n: _Sizes,
    x: int,
    reference: int,
    weight: int,
    labels: int,
    candidates: int,
    qmin: float,
    qmax: float,
    by_token: bool,
    metric: int,
    first: int,
    second: int,
    threads: int,
    /,
) -> None: ...
def search_state_scales(
    n: _Sizes,
    u: _Rows,
    delta: _Rows,
    A: int,
    B: _Rows,
    C: _Rows,
    q: _Quant,
    y_ref: _Rows,
    groups: int,
    candidates: int,
    K: int,
    step: int,
    threads: int,
    /,
) -> None: ...
