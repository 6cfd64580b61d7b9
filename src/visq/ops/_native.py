"""The C++ kernels of the ops: choosing their instruction set, and handing tensors to them as addresses and strides."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visq.errors import VisqError
from visq.native import extension
from visq.native.extension import _C, default_op_isa, op_isas
from visq.ops import backends

Rows = tuple[int, int, int]


def register_cpp(op: str) -> Callable[[backends.Function], backends.Function]:
    """Decorator: registers a function as the C++ implementation of an op."""
    label = lambda: f"cpp-{isa()}"  # noqa: E731
    return backends.register(op, "cpp", priority=10, devices=("cpu",), check=_usable, label=label)


def _usable(*args: Any) -> tuple[bool, str]:
    return extension.available(), extension.MISSING


def set_isa(name: str) -> None:
    """Makes every kernel use one instruction set. Raises VisqError where the machine or the build lacks it."""
    if name not in op_isas():
        have = ", ".join(op_isas()) or "none (no C++ extension)"
        raise VisqError(f"instruction set {name!r} is not available here; available: {have}")
    _C.set_isa(name)


def isa() -> str:
    """Returns the instruction set in use."""
    return _C.get_isa()


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Uses one instruction set inside a `with` block, in all threads."""
    before = isa()
    set_isa(name)
    try:
        yield
    finally:
        set_isa(before)


def native_rows(x: Tensor) -> tuple[Rows, Tensor]:
    """Returns (address, batch stride, row stride) of a [B, L, C] tensor, and the tensor that must stay alive meanwhile.

    Batches and rows may have any stride; a copy is made only when channels are not contiguous.
    """
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    return (x.data_ptr(), x.stride(0), x.stride(1)), x


def threads() -> int:
    """Returns how many threads a kernel may use: torch's own setting."""
    return torch.get_num_threads()


def torch_openmp() -> int:
    """Returns the address of GOMP_parallel in the GNU OpenMP runtime torch brings; 0 when it brings another or none."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        with contextlib.suppress(OSError, AttributeError):
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value or 0
    return 0


if _C is not None:
    _C.use_openmp(torch_openmp())
    set_isa(default_op_isa())
