"""libvisq by CMake: built without Python, installed, and found by a project of ten lines."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.csrc.flat_files import QUICK, make
from visq.native.extension import available
from visq.runtime.engine import Engine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available() or not shutil.which("cmake"), reason="needs cmake and the extension"),
]

CSRC = Path(__file__).parents[2] / "csrc"
PROJECT = """cmake_minimum_required(VERSION 3.20)
project(example C)
find_package(visq 0.1 REQUIRED)
add_executable(example main.c)
target_link_libraries(example PRIVATE visq::visq)
"""
PROGRAM = r"""#include <stdio.h>
#include <visq.h>
int main(int count, char** arguments) {
  static float images[784], logits[10];
  visq_net net;
  (void)count;
  for (int i = 0; i < 784; ++i) images[i] = (float)(i % 28) / 28;
  if (visq_open(arguments[1], NULL, &net) || visq_run(net, images, 1, 784, logits, 10, 1)) return puts(visq_error()), 1;
  return fwrite(logits, 4, 10, stdout) != 10 || visq_close(net);
}
"""


def run(*command: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build, prefix = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("prefix")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    run("cmake", "-S", CSRC, "-B", build, env=environment)
    run("cmake", "--build", build, "--parallel", os.cpu_count() or 1, env=environment)
    run("cmake", "--install", build, "--prefix", prefix, "--strip")
    return prefix


def test_the_installed_library(installed: Path) -> None:
    library = next(installed.glob("lib*/**/libvisq.so"))
    assert library.stat().st_size < 1_500_000
    symbols = run("nm", "-D", "--defined-only", library).stdout.decode().split()[2::3]
    assert symbols and all(symbol.startswith("visq_") for symbol in symbols)
    assert (installed / "bin" / "visq-run").exists() and next(installed.glob("lib*/**/libvisq.a")).exists()


def test_a_project_of_ten_lines(installed: Path, tmp_path: Path) -> None:
    artifact, file = make(*QUICK[0], tmp_path)
    project = tmp_path / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(PROJECT)
    (project / "main.c").write_text(PROGRAM)
    run("cmake", "-S", project, "-B", project / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", project / "build")
    found = np.frombuffer(run(project / "build" / "example", file).stdout, np.float32)
    image = np.tile(np.arange(28, dtype=np.float32) / np.float32(28), (28, 1))[None, None]
    assert np.array_equal(found, Engine(artifact, threads=1)(image)[0])


def test_pkg_config(installed: Path, tmp_path: Path) -> None:
    if not shutil.which("pkg-config"):
        pytest.skip("needs pkg-config")
    folder = next(installed.glob("lib*/**/pkgconfig"))
    flags = run("pkg-config", "--cflags", "--libs", "visq", env={**os.environ, "PKG_CONFIG_PATH": str(folder)}).stdout
    (tmp_path / "main.c").write_text(PROGRAM)
    run("cc", "-std=c99", tmp_path / "main.c", *flags.decode().split(), "-o", tmp_path / "example")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder.parent)}
    done = subprocess.run([tmp_path / "example", tmp_path / "none"], capture_output=True, env=environment, check=False)
    assert done.returncode == 1 and done.stdout.startswith(b"cannot read ")
