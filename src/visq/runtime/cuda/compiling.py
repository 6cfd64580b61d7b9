"""Makes Triton functions of generated text, once for each text."""

from __future__ import annotations

import functools
import hashlib
import linecache
from typing import Any

import triton
import triton.language as tl
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from visq.runtime.cuda import kernels, lane_kernels, scan_kernels

#: What Triton raises for a kernel that this GPU cannot run.
COMPILE_ERRORS = (CompilationError, OutOfResources, PTXASError)


@functools.cache
def function(kernel: str) -> Any:
    """Returns the Triton function of a kernel's text, or the one of this name in `kernels`."""
    if kernel.isidentifier():
        return getattr(kernels, kernel)
    name = f"<visq kernel {hashlib.sha256(kernel.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(kernel), None, kernel.splitlines(keepends=True), name)  # Triton reads the source
    space: dict[str, Any] = {"triton": triton, "tl": tl, "k": kernels, "s": scan_kernels}
    space["lanes"] = lane_kernels
    space["__name__"] = "visq.runtime.cuda.generated"
    exec(compile(kernel, name, "exec"), space)
    return triton.jit(do_not_specialize=["M"])(space["kernel"])
