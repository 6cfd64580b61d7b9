"""The C++ extension: loading it, choosing its instruction set, and handing tensors to it as addresses and strides."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from visq.errors import VisqError

try:
    from visq import _C
except ImportError as error:  # installed without a compiler
    _C = None  # type: ignore[assignment]
    _missing = f"the C++ extension visq._C is not installed ({error})"

ISAS = ("avx512", "avx2", "scalar")
#: Variants that only the integer engine tells apart, and what they are here.
_ENGINE_ISAS = {"amx": "avx512", "amx-emulated": "avx512", "avx512vnni": "avx512"}

Rows = tuple[int, int, int]


def available() -> tuple[bool, str]:
    """Whether the extension can be used, and why not."""
    return (True, "") if _C is not None else (False, _missing)


def present_isas() -> tuple[str, ...]:
    """Instruction sets both this build and this machine have, fastest first."""
    return tuple(name for name in ISAS if _C.has_isa(name)) if _C is not None else ()


def set_isa(name: str) -> None:
    """Makes every kernel use one instruction set. Raises VisqError where the machine or the build lacks it."""
    if name not in present_isas():
        have = ", ".join(present_isas()) or "none (no C++ extension)"
        raise VisqError(f"instruction set {name!r} is not available here; available: {have}")
    _C.set_isa(name)


def isa() -> str:
    """The instruction set in use."""
    return _C.get_isa()


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Uses one instruction set inside a `with` block (all threads)."""
    before = isa()
    set_isa(name)
    try:
        yield
    finally:
        set_isa(before)


def native_rows(x: Tensor) -> tuple[Rows, Tensor]:
    """(address, batch stride, row stride) of a [B, L, C] tensor, and the tensor that must stay alive meanwhile.

    Batches and rows may have any stride; a copy is made only when channels are not contiguous."""
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    return (x.data_ptr(), x.stride(0), x.stride(1)), x


def threads() -> int:
    """How many threads a kernel may use: torch's own setting."""
    return torch.get_num_threads()


def torch_openmp() -> int:
    """Address of GOMP_parallel in the GNU OpenMP runtime torch brings; 0 when it brings another or none."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        with contextlib.suppress(OSError, AttributeError):
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value or 0
    return 0


if _C is not None:
    _C.use_openmp(torch_openmp())
    _wanted = os.environ.get("VISQ_ISA") or present_isas()[0]
    set_isa(_ENGINE_ISAS[_wanted] if _wanted in _ENGINE_ISAS and _C.has_engine_isa(_wanted) else _wanted)
