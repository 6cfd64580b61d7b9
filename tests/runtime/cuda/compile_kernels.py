"""Compiles every kernel of an artifact's program for GPUs, without one, and reads the machine code.

Run as a program in a process without TRITON_INTERPRET: `python -m tests.runtime.cuda.compile_kernels FOLDER`. Prints a
line for each kernel: where it is from, capability, registers, and bytes spilled.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from visq.runtime.bundle import read_bundle
from visq.runtime.cuda.compiling import function
from visq.runtime.cuda.engine import refuse_lost_sums
from visq.runtime.cuda.phases import Launch
from visq.runtime.cuda.plan import make_plan
from visq.runtime.cuda.text import Place

BATCH = 8
CAPABILITIES = (80, 90)


def type_of(argument: Place | np.ndarray) -> str:
    if isinstance(argument, Place):
        return "*u8" if argument.coded else "*fp32"
    return {"float32": "*fp32", "int32": "*i32", "int8": "*i8"}[argument.dtype.name]


def compiled(launch: Launch, capability: int) -> str:
    """Returns the PTX of a launch's kernel, in whose machine code no sum is lost."""
    kernel = function(launch.kernel)
    _, constants = launch.shape(BATCH)
    types = [type_of(x) for x in launch.arguments] + ["i32"] * (launch.rows is not None)
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {**dict(zip(names, types, strict=True)), **dict.fromkeys(constants, "constexpr")}
    signature = {name: signature[name] for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    options = {"num_warps": launch.warps, "enable_fp_fusion": False}
    source = ASTSource(kernel, signature, values, aligned)
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    refuse_lost_sums(launch.name, code)
    return str(code.asm["ptx"])


def main(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.config.program is not None
    seen = set()
    for launch in make_plan(bundle.config.program, bundle).launches:
        key = (launch.kernel, tuple(launch.shape(BATCH)[1].items()), tuple(map(type_of, launch.arguments)))
        if key in seen:
            continue
        seen.add(key)
        for capability in CAPABILITIES:
            ptx = compiled(launch, capability)
            assert f"sm_{capability}" in ptx
            # Nothing is read past the caches of a barrier: a phase reads what it has written itself.
            # The only fused multiply-adds are those that `lane_kernels` asks for.
            assert not re.search(r"\bfma\.(?!rm\b)|\.ftz|\.approx|ld\.global\S*\.nc", ptx), (launch.name, launch.kernel)
            assert ("bar.sync" in ptx) >= ("debug_barrier" in launch.kernel)
            products = "mma" if "mma" in ptx else ""
            print(launch.kind, capability, "local" if ".local" in ptx else "registers", products)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
