"""libvisq through its C header: the bits of the Python engine and the oracle, and an error code for every misuse."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import PIL
import pytest

from tests.csrc.flat_files import PAIRS, QUICK, as_stored, make, make_enlarger, make_segmenter, patched
from tests.csrc.library import (
    BAD_ARGUMENT,
    CANNOT_READ,
    CLOSED,
    CSRC,
    DAMAGED,
    FOREIGN,
    NEWER,
    NO_LEVEL,
    NO_MEMORY,
    NOT_VISQ,
    OK,
    OLDER,
    Library,
    build_folder,
    link,
)
from visq.data import Preprocess
from visq.native.extension import available, engine_isas
from visq.runtime.engine import Engine

pytestmark = pytest.mark.skipif(
    not available() or build_folder() is None, reason="needs g++ and the build folder of `make setup`"
)

Files = Callable[[tuple[str, str]], tuple[Path, Path]]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(link(tmp_path_factory.mktemp("libvisq")))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """(network, recipe) -> its artifact and flat file, made once."""
    return cache(lambda pair: make(*pair, tmp_path_factory.mktemp("net")))


@pytest.fixture(scope="session")
def file(files: Files) -> Path:
    return files(QUICK[0])[1]


@pytest.fixture
def net(library: Library, file: Path) -> int:
    status, net = library.open(file)
    assert status == OK, library.error
    return net


def images(count: int, side: int = 28, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (count, channels, side, side)).astype(np.float32)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_logits_have_the_bits_of_oracle_and_engine(library: Library, files: Files, pair: tuple[str, str]) -> None:
    artifact, file = files(pair)
    engine = Engine(artifact, threads=1)
    batch = images(3, engine.preprocess.image_size, engine.preprocess.channels)
    expected = Engine(artifact, kernel="oracle")(batch)
    assert np.array_equal(engine(batch), expected)
    expected = as_stored(expected)
    for level in engine_isas():
        status, net = library.open(file, level)
        assert status == OK, library.error
        assert library.text(net, "level") == level
        for threads in (1, 2):
            logits = np.full(expected.shape, np.nan, np.float32)
            assert library.run(net, batch, logits, threads) == OK, library.error
            assert np.array_equal(logits, expected), (level, threads)
        assert library.close(net) == OK


def test_pixels_are_prepared_as_python_does(library: Library, files: Files, net: int) -> None:
    artifact = files(QUICK[0])[0]
    engine = Engine(artifact, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
    prepared = np.stack([engine.preprocess.pixels(image) for image in pixels])
    logits = np.empty((5, 10), np.float32)
    assert library.run_rgb8(net, pixels, logits) == OK, library.error
    assert np.array_equal(logits, engine(engine.preprocess.normalize_array(prepared)))


def test_what_a_file_says_of_itself(library: Library, net: int) -> None:
    info, out = library.input(net), library.output(net)
    assert (info.channels, info.height, info.width, info.resize) == (1, 28, 28, 28)
    assert np.float32(info.mean[0]) == np.float32(0.2860) and np.float32(info.std[0]) == np.float32(0.3530)
    assert (out.size, out.classes, out.channels, out.height, out.width) == (10, 10, 0, 0, 0)
    assert library.class_name(net, 9) == (OK, "Ankle boot")
    assert library.class_name(net, 9, size=6) == (OK, "Ankle")
    assert library.class_name(net, 10)[0] == BAD_ARGUMENT
    assert library.text(net, "recipe") == "visq-w8a8-fused"


def test_wrong_calls(library: Library, net: int) -> None:
    logits = np.empty((1, 10), np.float32)
    pixels = np.zeros((1, 27, 28, 3), np.uint8)
    assert library.run_rgb8(net, pixels, logits) == BAD_ARGUMENT
    assert library.error == "images are 28 x 27 pixels, but the network takes 28 x 28"
    assert library.run(net, images(1)[..., :27].copy(), logits) == BAD_ARGUMENT
    assert library.error == "images has 756 floats, not 784"
    assert library.run(net, images(1), logits[:, :9].copy()) == BAD_ARGUMENT
    assert library.error == "logits has 9 floats, not 10"
    assert library.run(net, images(1) * np.float32(np.nan), logits) == BAD_ARGUMENT
    assert "NaN" in library.error
    for threads in (0, -1, 1025):
        assert library.run(net, images(1), logits, threads) == BAD_ARGUMENT
    assert library.run(net, images(1)[:0], logits[:0]) == OK
    assert library.error == ""


def test_closing_twice_and_from_two_threads(library: Library, file: Path) -> None:
    batch = images(2)
    for _ in range(20):
        net = library.open(file)[1]
        statuses: list[int] = []

        def run(net: int = net, statuses: list[int] = statuses) -> None:
            statuses.append(library.run(net, batch, np.empty((2, 10), np.float32)))

        def close(net: int = net, statuses: list[int] = statuses) -> None:
            statuses.append(100 + library.close(net))

        threads = [threading.Thread(target=target) for target in (run, close, run, close)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(status for status in statuses if status >= 100) == [100 + OK, 100 + CLOSED]
        assert {status for status in statuses if status < 100} <= {OK, CLOSED}
    assert library.close(net) == CLOSED and library.error == f"net {net} is not open"
    assert library.close(0) == CLOSED


def test_files_that_cannot_be_used(library: Library, file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()

    def opened(data: bytes, expected: int, sentence: str) -> None:
        status, net = library.open_memory(data)
        assert (status, net) == (expected, 0) and sentence in library.error, library.error

    opened(b"", NOT_VISQ, "does not start with visq's mark")
    opened(b"PK\x03\x04" + content, NOT_VISQ, "does not start with visq's mark")
    opened(content[:40], DAMAGED, "ends within its header")
    opened(content[:-64], DAMAGED, f"has {len(content) - 64} bytes, but should have {len(content)}")
    opened(patched(content, 8, b"\1\2\3\4"), FOREIGN, "byte order")
    opened(patched(content, 12, struct.pack("<I", 2)), NEWER, "version 2 of the format, this visq reads version 1")
    opened(patched(content, 12, struct.pack("<I", 0)), OLDER, "version 0")
    middle = len(content) // 2
    opened(patched(content, middle, bytes([content[middle] ^ 1]), mend=False), DAMAGED, "its checksum is another one")
    opened(patched(content, 64 + 8, struct.pack("<Q", 1 << 63)), DAMAGED, "section 1 does not lie in its")
    missing = tmp_path / "missing.visq"
    assert library.open(missing)[0] == CANNOT_READ
    assert library.error == f"cannot read {missing}: No such file or directory"
    assert library.open(tmp_path)[0] == CANNOT_READ
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it, and nobody must wait
    assert library.open(tmp_path / "pipe")[0] == CANNOT_READ
    (tmp_path / "empty").touch()
    assert library.open(tmp_path / "empty")[0] == NOT_VISQ
    for level in ("neon9", "i8mm", "wasm128"):  # of no processor, and of others than this one
        if level not in engine_isas():
            assert library.open(file, level)[0] == NO_LEVEL
            assert library.error.startswith(f"the instruction set {level} is not available here; available: ")


def test_every_truncation_is_an_error(library: Library, file: Path) -> None:
    content = file.read_bytes()
    for size in {*range(0, 512, 7), *range(0, len(content), 997)}:
        assert library.open_memory(content[:size])[0] in (NOT_VISQ, DAMAGED)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_changed_bytes_are_an_error_or_a_network(library: Library, files: Files, pair: tuple[str, str]) -> None:
    """The checksum is made to fit, so that the program's own checks must find what is wrong."""
    artifact, file = files(pair)
    content, side = file.read_bytes(), Engine(artifact, threads=1).preprocess.image_size
    records = struct.unpack_from("<Q", content, 64 + 3 * 24 - 16)[0]  # where the tensors begin
    rng = random.Random(0)
    logits, found = np.empty((1, 10), np.float32), set()
    for _ in range(60):
        at = rng.randrange(64, records)
        data = patched(content, at, rng.randbytes(rng.choice([1, 1, 2, 8]))[: len(content) - at])
        status, net = library.open_memory(data)
        found.add(status)
        assert (status == OK) == (library.error == "")
        if status == OK:
            out = library.output(net)
            info = library.input(net)
            if (out.size, info.height, info.width) == (10, side, side):
                library.run(net, images(1, side), logits)
            assert library.close(net) == OK
    assert found <= {OK, DAMAGED, NO_MEMORY}


def run_example(library: Library, *arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [str(library.path.with_name("visq-run")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's preparation of images as a program of its own."""
    program = tmp_path_factory.mktemp("fit") / "fit"
    sources = [str(Path(__file__).with_name("fit.c")), str(CSRC / "example" / "image.c")]
    command = ["gcc", "-std=c99", "-O1", f"-I{CSRC / 'include'}", f"-I{CSRC / 'example'}", *sources]
    subprocess.run([*command, "-lm", "-o", str(program)], check=True)
    return program


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="older Pillow resizes in another order")
@pytest.mark.parametrize("size", [(28, 28), (40, 28), (31, 77), (200, 90), (9, 9), (3000, 2), (60, 150), (60, 120)])
@pytest.mark.parametrize("change", [{}, {"resize": 37}, {"channels": 3, "interpolation": "bilinear"}], ids=str)
def test_the_example_prepares_any_image_as_pillow_does(
    fit: Path, tmp_path: Path, size: tuple[int, int], change: dict[str, object]
) -> None:
    """Small C functions against Preprocess: resize, crop and grey, to the last pixel."""
    from PIL import Image

    values = {"image_size": 28, "resize": 28, "channels": 1, "interpolation": "bicubic", **change}
    channels = int(str(values["channels"]))
    preprocess = Preprocess(**values, mean=(0.5,) * channels, std=(0.5,) * channels)  # type: ignore[arg-type]
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.ppm")
    numbers = [values["resize"], 28, channels, int(values["interpolation"] == "bicubic")]
    done = subprocess.run([fit, tmp_path / "a.ppm", *map(str, numbers)], capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.uint8).reshape(28, 28, 3).transpose(2, 0, 1)[:channels]
    assert np.array_equal(found, preprocess.pixels((tmp_path / "a.ppm").read_bytes()))


def test_the_example(library: Library, files: Files, tmp_path: Path) -> None:
    from PIL import Image

    artifact, file = files(QUICK[0])
    engine = Engine(artifact, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.ppm")
    done = run_example(library, file, tmp_path / "a.ppm", "--repeat", 3)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    best = engine.predict(tmp_path / "a.ppm", top=1)[0][0]
    assert len(lines) == 6 and lines[0].endswith(best.name) and "visq-w8a8-fused: opened in" in lines[5]
    raw = np.frombuffer(run_example(library, file, tmp_path / "a.ppm", "--logits").stdout, np.float32)
    prepared = engine.preprocess.pixels((tmp_path / "a.ppm").read_bytes())
    assert np.array_equal(raw, engine(engine.preprocess.normalize_array(prepared[None]))[0])
    for arguments, sentence in (
        ((file,), b"visq-run NET.visq IMAGE"),
        ((file, file), b"neither a binary PPM"),
        ((tmp_path / "a.ppm", tmp_path / "a.ppm"), b"no file of visq"),
        ((file, tmp_path / "a.ppm", "--level", "x"), b"instruction set x"),
        ((file, tmp_path / "a.ppm", "--threads", 0), b"threads is 0, not between 1 and 1024"),
        ((file, tmp_path / "a.ppm", "-o", tmp_path / "b.ppm"), b"returns classes, and no image to write"),
    ):
        done = run_example(library, *arguments)
        assert done.returncode in (1, 2) and sentence in done.stderr, done.stderr


def test_the_example_names_the_five_likeliest_classes_of_a_grey_picture(
    library: Library, files: Files, tmp_path: Path
) -> None:
    """A PGM, whose name and comment say nothing, and a network of one channel: as `predict` answers."""
    artifact, file = files(QUICK[0])
    pixels = np.random.default_rng(3).integers(0, 256, (33, 47), dtype=np.uint8)
    (tmp_path / "a.grey").write_bytes(b"P5\n# grey\n47 33\n255\n" + pixels.tobytes())
    done = run_example(library, file, tmp_path / "a.grey", "--threads", 2)
    assert done.returncode == 0, done.stderr
    guesses = Engine(artifact, threads=1).predict(tmp_path / "a.grey", top=5)[0]
    shown = [line.split(maxsplit=1) for line in done.stdout.decode().splitlines()[:5]]
    assert [name for _, name in shown] == [guess.name for guess in guesses]
    logits = np.frombuffer(run_example(library, file, tmp_path / "a.grey", "--logits").stdout, np.float32)
    assert [float(score) for score, _ in shown] == [float(f"{x:.4f}") for x in sorted(logits, reverse=True)[:5]]
    (tmp_path / "a.grey").write_bytes(b"P5 47 33 255 " + pixels.tobytes()[:-1])
    done = run_example(library, file, tmp_path / "a.grey")
    assert done.returncode == 1 and b"it ends early" in done.stderr


@pytest.fixture(scope="module")
def images_to_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network that enlarges images of 9 x 12 pixels twice: its artifact and flat file."""
    return make_enlarger(tmp_path_factory.mktemp("enlarge"))


def test_a_network_that_returns_images(library: Library, images_to_images: tuple[Path, Path], tmp_path: Path) -> None:
    """The floats have the engine's bits, and visq-run writes the pixels of `visq upscale`."""
    from PIL import Image

    from visq.runtime.upscaling import upscale

    artifact, file = images_to_images
    engine = Engine(artifact, threads=1)
    status, net = library.open(file)
    assert status == OK, library.error
    info, out = library.input(net), library.output(net)
    assert (info.channels, info.height, info.width, info.resize) == (3, 9, 12, 0)
    assert (out.size, out.classes, out.channels, out.height, out.width) == (3 * 18 * 24, 0, 3, 18, 24)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 12, 3), dtype=np.uint8)
    expected = engine(engine.preprocess.normalize_array(pixels.transpose(0, 3, 1, 2)))
    for threads in (1, 2):
        found = np.full((2, 18, 24, 3), np.nan, np.float32)
        assert library.run_rgb8(net, pixels, found, threads) == OK, library.error
        assert np.array_equal(found.transpose(0, 3, 1, 2), expected)
    assert library.run_rgb8(net, pixels[:, :, :9].copy(), found) == BAD_ARGUMENT
    assert library.error == "images are 9 x 9 pixels, but the network takes 12 x 9"
    Image.fromarray(pixels[0]).save(tmp_path / "a.ppm")
    done = run_example(library, file, tmp_path / "a.ppm", "-o", tmp_path / "large.ppm")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.asarray(Image.open(tmp_path / "large.ppm")), upscale(engine, pixels[0]))
    Image.fromarray(pixels[0, :, :9]).save(tmp_path / "b.ppm")
    for arguments, sentence in (
        ((tmp_path / "a.ppm",), b"this network returns an image; -o names its file"),
        ((tmp_path / "a.ppm", "-o", tmp_path / "no" / "x.ppm"), b"it cannot be written"),
        ((tmp_path / "b.ppm", "-o", tmp_path / "x.ppm"), b"it has not the size that the network takes"),
    ):
        done = run_example(library, file, *arguments)
        assert done.returncode == 1 and sentence in done.stderr, done.stderr


def test_a_network_that_gives_each_pixel_a_class(library: Library, tmp_path: Path) -> None:
    """The maps have the engine's bits, the classes their names, and visq-run writes the number of each one."""
    from PIL import Image

    artifact, file = make_segmenter(tmp_path)
    engine = Engine(artifact, threads=1)
    status, net = library.open(file)
    assert status == OK, library.error
    info, out = library.input(net), library.output(net)
    assert (info.channels, info.height, info.width, info.resize) == (3, 18, 30, 0)
    assert (out.size, out.classes, out.channels, out.height, out.width) == (3 * 5 * 8, 3, 3, 5, 8)
    assert [library.class_name(net, i)[1] for i in range(3)] == ["road", "sky", "tree"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 18, 30, 3), dtype=np.uint8)
    expected = engine(engine.preprocess.normalize_array(pixels.transpose(0, 3, 1, 2)))
    found = np.full((2, 5, 8, 3), np.nan, np.float32)
    assert library.run_rgb8(net, pixels, found) == OK, library.error
    assert np.array_equal(found.transpose(0, 3, 1, 2), expected)
    Image.fromarray(pixels[0]).save(tmp_path / "a.ppm")
    done = run_example(library, file, tmp_path / "a.ppm", "-o", tmp_path / "classes.pgm")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.asarray(Image.open(tmp_path / "classes.pgm")), expected[0].argmax(0))


def test_too_little_memory_is_an_error(library: Library, files: Files) -> None:
    import resource

    file = files(QUICK[0])[1]
    needed = set()
    for megabytes in (6, 8, 10, 12, 16, 24, 512):
        limit = megabytes << 20

        def limited(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        done = run_example(library, file, file.with_name("a.ppm"), preexec_fn=limited)
        # Below some size not even the dynamic loader starts (127); no run ends by a signal.
        assert done.returncode in (1, 127), (megabytes, done)
        needed.add(done.returncode)
    assert 1 in needed
