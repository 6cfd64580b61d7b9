"""libvisq for tests: linked from the objects of the newest build folder, called through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
OK, BAD_ARGUMENT, CLOSED, CANNOT_READ, NOT_VISQ, DAMAGED, FOREIGN, OLDER, NEWER, NO_LEVEL, NO_MEMORY = range(11)


def build_folder() -> Path | None:
    """Returns the newest build folder of the extension, which holds the kernels' objects."""
    builds = sorted(ROOT.glob("build/cp*/CMakeCache.txt"), key=lambda path: path.stat().st_mtime)
    return builds[-1].parent if builds and shutil.which("g++") else None


def link(folder: Path) -> Path:
    """Builds libvisq.so and visq-run in `folder` from the extension's objects; returns the library.

    Compiles three small sources only. The library that CMake builds is tested in test_cmake.py.
    """
    build = build_folder()
    assert build is not None
    objects = [
        str(path)
        for part in build.glob("csrc/CMakeFiles/*.dir")
        if part.name.startswith(("engine_", "visq_core"))
        for path in part.glob("**/*.o")
    ]
    flags = ["-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-pthread"]
    common = [f"-I{CSRC}", f"-I{CSRC / 'include'}", '-DVISQ_VERSION="0.1.0"']
    exports = f"-Wl,--version-script={CSRC / 'capi' / 'exports.map'}"
    library = folder / "libvisq.so"
    sources = sorted(map(str, CSRC.glob("capi/*.cpp")))
    command = ["g++", "-std=c++17", "-shared", *flags, *common, *sources, *objects, exports, "-o", str(library)]
    subprocess.run(command, check=True)
    programs = sorted(map(str, CSRC.glob("example/*.c")))
    command = ["gcc", "-std=c99", "-O1", "-D_POSIX_C_SOURCE=199309L", f"-I{CSRC / 'include'}", *programs]
    has_png = Path("/usr/include/png.h").exists()
    command += ["-DVISQ_HAS_PNG", "-lpng"] if has_png else []
    command += [str(library), "-lm", f"-Wl,-rpath,{folder}", "-o", str(folder / "visq-run")]
    subprocess.run(command, check=True)
    return library


class Options(ctypes.Structure):
    _fields_ = [("level", ctypes.c_char_p)]


class Input(ctypes.Structure):
    _fields_ = [
        ("channels", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("resize", ctypes.c_int64),
        ("bicubic", ctypes.c_int32),
        ("mean", ctypes.c_float * 4),
        ("std", ctypes.c_float * 4),
    ]


class Output(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("size", "classes", "channels", "height", "width")]


class Library:
    """The functions of visq.h. Methods return the status; `error` is the sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.c = ctypes.CDLL(str(path))
        self.c.visq_error.restype = self.c.visq_version.restype = ctypes.c_char_p

    @property
    def error(self) -> str:
        return self.c.visq_error().decode()

    def open(self, path: Path, level: str | None = None) -> tuple[int, int]:
        """Returns the status and the net."""
        net = ctypes.c_uint64()
        options = Options(level.encode() if level else None)
        return self.c.visq_open(str(path).encode(), ctypes.byref(options), ctypes.byref(net)), net.value

    def open_memory(self, content: bytes) -> tuple[int, int]:
        net = ctypes.c_uint64()
        return self.c.visq_open_memory(content, ctypes.c_size_t(len(content)), None, ctypes.byref(net)), net.value

    def close(self, net: int) -> int:
        return self.c.visq_close(ctypes.c_uint64(net))

    def input(self, net: int) -> Input:
        found = Input()
        assert self.c.visq_input_info(ctypes.c_uint64(net), ctypes.byref(found)) == OK, self.error
        return found

    def output(self, net: int) -> Output:
        found = Output()
        assert self.c.visq_output_info(ctypes.c_uint64(net), ctypes.byref(found)) == OK, self.error
        return found

    def text(self, net: int, key: str) -> str:
        room = ctypes.create_string_buffer(256)
        assert self.c.visq_text(ctypes.c_uint64(net), key.encode(), room, ctypes.c_size_t(256)) == OK, self.error
        return room.value.decode()

    def class_name(self, net: int, index: int, size: int = 256) -> tuple[int, str]:
        room = ctypes.create_string_buffer(256)
        status = self.c.visq_class_name(ctypes.c_uint64(net), ctypes.c_int64(index), room, ctypes.c_size_t(size))
        return status, room.value.decode()

    def run(self, net: int, images: np.ndarray, logits: np.ndarray, threads: int = 1) -> int:
        """Runs normalized images [batch, channels, height, width] float32."""
        return self.c.visq_run(
            *(ctypes.c_uint64(net), pointer(images), ctypes.c_int64(len(images)), ctypes.c_size_t(images.size)),
            *(pointer(logits), ctypes.c_size_t(logits.size), ctypes.c_int32(threads)),
        )

    def run_rgb8(self, net: int, pixels: np.ndarray, logits: np.ndarray, threads: int = 1) -> int:
        """Runs pixels [batch, height, width, 3] uint8."""
        sizes = (ctypes.c_int64(size) for size in pixels.shape[:3])
        return self.c.visq_run_rgb8(
            *(ctypes.c_uint64(net), pointer(pixels), *sizes),
            *(pointer(logits), ctypes.c_size_t(logits.size), ctypes.c_int32(threads)),
        )


def pointer(array: np.ndarray) -> Any:
    return ctypes.c_void_p(array.ctypes.data)
