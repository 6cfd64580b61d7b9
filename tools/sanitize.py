"""Builds the extension with sanitizers, in folders of its own, and runs tests on it.

    python tools/sanitize.py address    AddressSanitizer and UndefinedBehaviorSanitizer: tests of engine and kernels. In
                                        Triton's interpreter they also see a kernel for GPUs that reads or writes beside
                                        a tensor
    python tools/sanitize.py thread     ThreadSanitizer: many batches on several threads (tests/csrc/many_batches.py)

Needs the virtual environment of `make setup` and GCC. Further arguments go to pytest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: The editable install would import the normal build. Python runs this file after it has set that up.
SITE = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
"""

#: Tests that compile with torch's inductor or trace with its dispatcher take minutes here and run no other C++.
SKIPPED = "not opcheck and not compile and not forced_isa"


def build(kind: str) -> Path:
    """Returns the folder to put in front of PYTHONPATH: the package with a sanitized extension."""
    folder = ROOT / "build" / f"sanitize-{kind}"
    site = folder / "site"
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["-c", "constraints.txt", "--target", str(site), "-C", f"build-dir={folder / 'cmake'}"]
    command += ["-C", f"cmake.define.VISQ_SANITIZE={kind}", "-C", "install.strip=false", "."]
    env = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()), **os.environ}
    subprocess.run(command, cwd=ROOT, check=True, env=env)
    (site / "sitecustomize.py").write_text(SITE)
    return site


def runtime_library(name: str) -> str:
    done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run(kind: str, site: Path, arguments: list[str]) -> int:
    # Python links neither: the sanitizer must come first, and finds exceptions only if libstdc++ is there.
    libraries = ["libasan.so" if kind == "address" else "libtsan.so", "libstdc++.so"]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "LD_PRELOAD": " ".join(map(runtime_library, libraries)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # Python and torch keep memory until the process ends.
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
        "VISQ_SANITIZED": str(site),
    }
    if kind == "address":
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            # The sanitizers write to the process's standard error, which pytest would keep for itself.
            "--capture=sys",
            "-m",
            "not slow",
            "-k",
            SKIPPED,
        ]
        command += arguments or ["tests/runtime/cpu", "tests/runtime/test_maps.py", "tests/ops", "tests/runtime/cuda"]
    else:
        command = [sys.executable, "-m", "tests.csrc.many_batches"]
        if shutil.which("setarch"):  # ThreadSanitizer of GCC 12 needs memory where newer kernels do not put it
            command = ["setarch", "-R", *command]
    return subprocess.run(command, cwd=ROOT, env=env).returncode


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in ("address", "thread"):
        sys.exit(__doc__)
    kind = sys.argv[1]
    sys.exit(run(kind, build(kind), sys.argv[2:]))


if __name__ == "__main__":
    main()
