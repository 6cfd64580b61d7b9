"""Loads the C++ extension and says which instruction sets this build and this machine have.

`VISQ_ISA` names the level to use. The kernels of `visq.ops` have the levels `scalar`, `avx2` and `avx512`. The integer
engine tells more of them apart: `avx512vnni` and `amx` are variants of `avx512`.
"""

from __future__ import annotations

import os

from visq.errors import VisqError

try:
    from visq import _C

    MISSING = ""
except ImportError as error:  # installed without a compiler
    _C = None  # type: ignore[assignment]
    MISSING = f"the C++ extension visq._C is not installed ({error})"

#: The engine's levels, fastest first.
ENGINE_ISAS = ("amx", "avx512vnni", "avx512", "avx2", "i8mm", "neondot", "neon", "scalar")
#: `amx` with its matrix instructions emulated in C++, for tests on machines without them. Runs only when named.
EMULATED = "amx-emulated"
#: Vectors of 16 bytes without intrinsics, for tests and as the start of ports. Runs only when named.
PORTABLE = "portable"
#: The levels of the kernels in `visq.ops`, fastest first.
OP_ISAS = ("avx512", "avx2", "scalar")

#: The engine's variants of a level of `visq.ops`, fastest first; every other level is its own only variant.
_VARIANTS = {"avx512": ("avx512vnni", "avx512")}
#: The level of `visq.ops` that an engine's variant belongs to.
_OP_LEVEL = {"amx": "avx512", EMULATED: "avx512", "avx512vnni": "avx512", PORTABLE: "scalar"}


def available() -> bool:
    """Returns whether the extension is installed; if not, `MISSING` says why."""
    return _C is not None


def has_engine_isa(name: str) -> bool:
    """Returns whether both this build and this machine have a level of the engine, or can emulate it."""
    return _C is not None and bool(_C.has_engine_isa(name))


def engine_isas() -> tuple[str, ...]:
    """Returns the engine's levels that both this build and this machine have, fastest first."""
    return tuple(name for name in ENGINE_ISAS if has_engine_isa(name))


def op_isas() -> tuple[str, ...]:
    """Returns the levels of `visq.ops` that both this build and this machine have, fastest first."""
    return tuple(name for name in OP_ISAS if _C is not None and _C.has_isa(name))


def engine_isa(wanted: str | None = None) -> str:
    """Returns the fastest available level of the engine that belongs to `wanted`.

    Arguments:
        wanted: a level of the engine or of `visq.ops`; by default VISQ_ISA, or the fastest level.

    Raises:
        VisqError: the extension is missing, or the machine or build lacks the level.
    """
    if _C is None:
        raise VisqError(f"the engine needs the C++ extension: {MISSING}")
    source = "" if wanted else "VISQ_ISA="
    wanted = wanted or os.environ.get("VISQ_ISA")
    present = engine_isas()
    if not wanted:
        return present[0]
    for name in _VARIANTS.get(wanted, (wanted,)):
        if has_engine_isa(name):
            return name
    raise VisqError(f"{source}{wanted} is not available here; available: {', '.join(present)}")


def default_op_isa() -> str:
    """Returns the level of `visq.ops` that VISQ_ISA names, or else the fastest one. Needs the extension."""
    wanted = os.environ.get("VISQ_ISA")
    if not wanted:
        return op_isas()[0]
    return _OP_LEVEL[wanted] if wanted in _OP_LEVEL and has_engine_isa(wanted) else wanted
