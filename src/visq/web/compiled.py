"""libvisq as WebAssembly: compiled by emscripten from `csrc`, once with SIMD128 and once without."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from visq.errors import VisqError

#: Programs that compile it (Debian: apt install emscripten cmake).
NEEDED = ("emcmake", "em++", "cmake")
#: The fastest level of a module, and what CMake is told for it.
LEVELS = {"wasm128": [], "scalar": ["-DVISQ_SCALAR_ONLY=ON"]}
#: Where Debian keeps the modules that emscripten needs; a Node from elsewhere does not look there.
_DEBIAN_MODULES = "/usr/share/nodejs"


def compile_library(folder: Path | None = None) -> dict[str, Path]:
    """Compiles what is not up to date; returns each level's script, whose module lies beside it.

    Arguments:
        folder: of the builds; `build/web-*` of the checkout by default.
    Raises:
        VisqError: there is no checkout or no emscripten, or it does not compile.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / "csrc" / "web").is_dir():
        raise VisqError("the page needs visq's C++, which is not in an installed package; run it in a checkout of visq")
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        raise VisqError(
            f"the page cannot be built: {', '.join(missing)} missing (Debian: apt install emscripten cmake)"
        )
    folder = folder or root / "build"
    return {level: _compile(root / "csrc", folder / f"web-{level}", options) for level, options in LEVELS.items()}


def _compile(source: Path, build: Path, options: list[str]) -> Path:
    env = dict(os.environ)
    if Path(_DEBIAN_MODULES).is_dir():
        env["NODE_PATH"] = os.pathsep.join(filter(None, [env.get("NODE_PATH"), _DEBIAN_MODULES]))
    commands = [
        ["emcmake", "cmake", "-S", str(source), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", *options],
        ["cmake", "--build", str(build), "--parallel", str(os.cpu_count())],
    ]
    for command in commands:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            said = next((line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()), "")
            raise VisqError(f"the page cannot be built: {command[0]} failed in {build}: {said.strip()}")
    return build / "visq-web.js"
