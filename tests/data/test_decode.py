"""Decoding: what is read, what is refused, in how much memory, and what EXIF and transparency do."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.images import encode, grey_png, noise
from visq.data import Preprocess
from visq.data.decode import FORMATS, MOST_PIXELS, UnreadableImage, decode_image, opened


@pytest.mark.parametrize("form", FORMATS)
def test_formats_people_use(form: str) -> None:
    image = Image.fromarray(noise(6, 5))
    options = {"lossless": True} if form == "WEBP" else {}
    found = np.asarray(decode_image(encode(image, form, **options), 3).image)
    assert found.shape == (6, 5, 3)
    if form not in ("JPEG", "GIF"):
        assert np.array_equal(found, np.asarray(image))


@pytest.mark.parametrize("form", ["EPS", "PCX", "TGA", "SGI", "ICO", "PDF", "JPEG2000"])
def test_other_formats_reach_no_decoder(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(Image.fromarray(noise(16, 16)), form)
    monkeypatch.setattr(subprocess, "check_call", lambda *_: pytest.fail("a program was started"))
    with pytest.raises(UnreadableImage, match="its content is not JPEG, PNG, WEBP, BMP, GIF, TIFF or PPM"):
        decode_image(encoded, 3)


def test_first_of_several_frames() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for form in ("GIF", "TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if form == "WEBP" else {}
        found = decode_image(encode(frames[0], form, save_all=True, append_images=frames[1:], **options), 3).image
        assert found.getpixel((1, 1)) == (255, 0, 0)


def test_bombs_are_refused_by_size() -> None:
    with pytest.raises(UnreadableImage, match=f"more than {MOST_PIXELS:,} pixels"):
        decode_image(grey_png(30_000, 30_000, rows=1), 3)
    # Pillow's own limit can be lifted by anyone in the process; ours stays.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with pytest.raises(UnreadableImage, match=f"30000x30000 pixels, at most {MOST_PIXELS:,} are read"):
            decode_image(grey_png(30_000, 30_000, rows=1), 3)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@pytest.mark.parametrize("resize", [256, 600])
def test_long_images_take_little_memory(resize: int, tmp_path: Path) -> None:
    """An image of 65500 x 1 pixels once took 11 GB; here the process may hold 1 GB of address space."""
    paths = []
    for number, size in enumerate([(65_500, 1), (1, 65_500), (4_000_000, 1), (3, 60_000)]):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(grey_png(*size))
    code = (
        "import sys; from resource import RLIMIT_AS, setrlimit; from visq.data import Preprocess;"
        "setrlimit(RLIMIT_AS, (10**9, 10**9)); ours = Preprocess.imagenet(224, int(sys.argv[1]));"
        "print({ours.pixels(open(path, 'rb').read()).shape for path in sys.argv[2:]})"
    )
    command = [sys.executable, "-c", code, str(resize), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "{(3, 224, 224)}\n", done.stderr


def test_too_little_memory_is_an_unreadable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(UnreadableImage, match="more memory than there is"):
        decode_image(encode(Image.fromarray(noise(4, 4))), 1)


def oriented(pixels: np.ndarray, orientation: int, form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    return encode(Image.fromarray(pixels), form, exif=exif.tobytes(), **options)


#: What a viewer does to stored pixels [H, W, 3], by EXIF orientation (TIFF 6.0, tag 274).
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_unless_asked_for(orientation: int, form: str) -> None:
    pixels = np.kron(noise(2, 3), np.ones((8, 8, 1), np.uint8))  # blocks of 8 x 8, which JPEG keeps
    encoded = oriented(pixels, orientation, form)
    stored, upright = decode_image(encoded, 3), decode_image(encoded, 3, upright=True)
    assert stored.turned == upright.turned == (orientation != 1)
    assert np.allclose(stored.image, pixels, atol=3)
    assert np.allclose(upright.image, UPRIGHT[orientation](pixels), atol=3)


def test_tiff_is_turned_once() -> None:
    """Pillow turns TIFF files itself, for everybody; we must not turn them again."""
    pixels = noise(2, 3)
    image = Image.fromarray(pixels)
    for upright in (False, True):
        found = decode_image(encode(image, "TIFF", tiffinfo={274: 6}), 3, upright=upright)
        assert np.array_equal(found.image, np.rot90(pixels, -1)) and not found.turned


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_image() -> None:
    pixels = noise(8, 8)
    encoded = encode(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    assert np.array_equal(decode_image(encoded, 3, upright=True).image, pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_show_white(channels: int) -> None:
    pixels = np.dstack([noise(2, 2), np.array([[0, 255], [128, 255]], np.uint8)])
    found = decode_image(encode(Image.fromarray(pixels)), channels)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    if channels == 1:
        expected = expected @ [0.299, 0.587, 0.114]
    assert found.transparent and np.allclose(found.image, expected, atol=1.01)


def test_every_kind_of_transparency() -> None:
    grey = Image.fromarray(np.array([[10, 20]], np.uint8))
    colours = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    mask = Image.fromarray(np.array([[0, 255]], np.uint8))
    with_alpha = colours.copy()
    with_alpha.putalpha(mask)
    files = {
        "grey and alpha": encode(Image.merge("LA", [grey, mask])),
        "grey key": encode(grey, transparency=10),
        "colour key": encode(colours, transparency=(1, 2, 3)),
        "palette": encode(colours.quantize(2), transparency=colours.quantize(2).getpixel((0, 0))),
        "GIF": encode(colours.quantize(2), "GIF", transparency=colours.quantize(2).getpixel((0, 0))),
        "WebP": encode(with_alpha, "WEBP", lossless=True),
        "TIFF": encode(with_alpha, "TIFF"),
    }
    for kind, encoded in files.items():
        found = decode_image(encoded, 3)
        assert found.transparent, kind
        assert found.image.getpixel((0, 0)) == (255, 255, 255), kind
        assert found.image.getpixel((1, 0)) in ((20, 20, 20), (4, 5, 6)), kind


def test_opaque_alpha_changes_nothing() -> None:
    image = Image.fromarray(noise(9, 7))
    found = decode_image(encode(image.convert("RGBA")), 3)
    assert not found.transparent and np.array_equal(found.image, image)
    assert np.array_equal(decode_image(encode(image.convert("LA")), 1).image, image.convert("L"))


def test_large_images_are_open_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(Image.fromarray(noise(8, 8)))
    together: list[int] = []
    inside: list[int] = []

    def look(_: int) -> None:
        with opened(encoded):
            inside.append(1)
            time.sleep(0.005)
            together.append(len(inside))
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(8)))
        assert max(together) > 1
        together.clear()
        monkeypatch.setattr("visq.data.decode.LARGE_PIXELS", 63)
        list(pool.map(look, range(8)))
    assert together == [1] * 8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_are_read_or_refused(form: str) -> None:
    """Whatever bytes change, an image comes out or one line says why not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if form in ("BMP", "GIF", "PPM") else {"exif": exif.tobytes()}
    whole = encode(Image.fromarray(noise(24, 40)), form, **options)
    rng, outcomes = random.Random(0), set()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(min(len(whole), rng.choice([64, 512, len(whole)])))] = rng.randrange(256)
        try:
            found = Preprocess.imagenet(16, 24).prepare(bytes(damaged[: rng.choice([None, len(whole) * 3 // 4])]))
            assert found.pixels.shape == (3, 16, 16)
            outcomes.add("read")
        except UnreadableImage as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 300
            outcomes.add("refused")
    assert "refused" in outcomes and ("read" in outcomes or form == "PNG")  # PNG has checksums
