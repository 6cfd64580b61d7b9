"""The evaluation transform against an independent writing-down of torchvision's documented arithmetic."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.images import encode, noise
from visq.data import Preprocess
from visq.data.decode import UnreadableImage
from visq.errors import VisqError


def torchvision_reference(image: Image.Image, resize: int, crop: int) -> torch.Tensor:
    """Resize(resize, BICUBIC), CenterCrop(crop), ToTensor, Normalize, step by step as torchvision documents them."""
    w, h = image.size
    if w < h:
        if w != resize:
            image = image.resize((resize, int(resize * h / w)), Image.Resampling.BICUBIC)
    elif h != resize:
        image = image.resize((int(resize * w / h), resize), Image.Resampling.BICUBIC)
    array = np.array(image)
    top = round((array.shape[0] - crop) / 2.0)
    left = round((array.shape[1] - crop) / 2.0)
    tensor = torch.tensor(array[top : top + crop, left : left + crop]).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (tensor - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("height,width", [(300, 400), (401, 301), (256, 259), (100, 333), (224, 224), (257, 256)])
def test_matches_torchvision(height: int, width: int) -> None:
    image = Image.fromarray(noise(height, width))
    ours = Preprocess.imagenet()
    got = ours.normalize(torch.tensor(ours.pixels(encode(image)))[None])[0]
    assert torch.allclose(got, torchvision_reference(image, 256, 224), atol=1e-6)


def test_right_size_is_not_resampled() -> None:
    array = noise(224, 224)
    assert np.array_equal(
        Preprocess.imagenet(224, 224).pixels(encode(Image.fromarray(array))), array.transpose(2, 0, 1)
    )
    grey = array[:28, :28, 0]
    assert np.array_equal(Preprocess.fashion_mnist().pixels(grey), grey[None])


def test_grey_array_to_three_channels() -> None:
    grey = noise(28, 28)[..., 0]
    three = Preprocess(28, 28, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert np.array_equal(three.pixels(grey), np.stack([grey] * 3))
    larger = Preprocess(56, 64, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert larger.pixels(grey).shape == (3, 56, 56)
    assert Preprocess(20, 24, mean=(0.5,), std=(0.5,), channels=1).pixels(grey).shape == (1, 20, 20)


@pytest.mark.parametrize("size", [(40, 5000), (5001, 40), (40, 2561), (100, 100_000)])
def test_ends_of_long_images_do_not_show(size: tuple[int, int]) -> None:
    """The centre of a long image is what the whole image would give, but for the rounding of a side's length."""
    ramp = np.add.outer(np.linspace(0, 100, size[1]), np.linspace(0, 100, size[0])).astype(np.uint8)
    ours = Preprocess(20, 24, mean=(0.5,), std=(0.5,), channels=1)
    short = min(size)
    whole = Image.fromarray(ramp).resize(tuple(24 * side // short for side in size), Image.Resampling.BICUBIC)
    left, top = ((side - 20) // 2 for side in whole.size)
    expected = np.asarray(whole.crop((left, top, left + 20, top + 20)), np.int64)
    assert np.abs(ours.pixels(encode(Image.fromarray(ramp)))[0] - expected).max() <= 2


def test_arrays_that_are_no_images() -> None:
    ours = Preprocess.imagenet()
    arrays = [np.zeros(shape, np.uint8) for shape in ((0, 5), (5, 5, 4), (5,), (1, 5, 5, 3))]
    for array in [*arrays, np.full((5, 5), np.nan), np.zeros((5, 5), np.int32)]:
        with pytest.raises(UnreadableImage, match=r"must be uint8 \[H, W\] or \[H, W, 3\]"):
            ours.pixels(array)
    colours = noise(300, 256)
    assert np.array_equal(ours.pixels(colours), ours.pixels(encode(Image.fromarray(colours))))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes(mode: str, channels: int) -> None:
    image = Image.fromarray(noise(30, 40)).convert(mode)
    transform = Preprocess(30, 30, mean=(0.5,) * channels, std=(0.5,) * channels, channels=channels)  # type: ignore[arg-type]
    pixels = transform.pixels(encode(image, "TIFF" if mode == "CMYK" else "PNG"))
    expected = np.asarray(image.convert("RGB" if channels == 3 else "L"))[:, 5:35]
    assert pixels.shape == (channels, 30, 30) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected.transpose(2, 0, 1) if channels == 3 else expected[None])


def test_palette_with_transparency() -> None:
    image = Image.fromarray(noise(8, 8)).quantize(4)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 255, 255, 255]))
    pixels = Preprocess(8, 8, mean=(0.5,) * 3, std=(0.5,) * 3).pixels(buffer.getvalue())
    expected = np.asarray(image.convert("RGB")).copy()
    expected[np.asarray(image) == 0] = 255  # transparent pixels show white
    assert np.array_equal(pixels, expected.transpose(2, 0, 1))


def test_sixteen_bit_is_scaled_not_clipped() -> None:
    values = np.array(
        [[0, 128, 129, 257], [32768, 65535, 65407, 65406], [1000, 300, 514, 40000], [1, 2, 3, 4]], np.uint16
    )
    encoded = encode(Image.fromarray(values))
    pixels = Preprocess(4, 4, mean=(0.5,), std=(0.5,), channels=1).pixels(encoded)
    assert np.array_equal(pixels[0], np.rint(values / 257).astype(np.uint8))
    assert np.array_equal(Preprocess(4, 4, mean=(0.5,) * 3, std=(0.5,) * 3).pixels(encoded), np.repeat(pixels, 3, 0))


def test_unreadable() -> None:
    whole = encode(Image.fromarray(noise(64, 64)), "JPEG")
    for damaged in (b"", b"not an image", whole[: len(whole) // 2]):
        with pytest.raises(UnreadableImage):
            Preprocess.imagenet().pixels(damaged)
    with pytest.raises(UnreadableImage, match="floating"):
        Preprocess.imagenet().pixels(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_dict_round_trip_and_errors() -> None:
    transform = Preprocess.imagenet()
    assert Preprocess.from_dict(transform.to_dict()) == transform
    assert isinstance(transform.to_dict()["mean"], list)
    with pytest.raises(VisqError, match="unknown key size"):
        Preprocess.from_dict({**transform.to_dict(), "size": 3})
    with pytest.raises(VisqError, match="'mean' is missing"):
        Preprocess.from_dict({"image_size": 3, "resize": 3})
    with pytest.raises(VisqError, match="resize"):
        Preprocess(224, 200, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(VisqError, match="mean has 1 values for 3 channels"):
        Preprocess(8, 8, mean=(0.5,), std=(0.5,) * 3)
    with pytest.raises(VisqError, match="std"):
        Preprocess(8, 8, mean=(0.5,), std=(0.0,), channels=1)
    with pytest.raises(VisqError, match="std must be finite"):
        Preprocess(8, 8, mean=(0.5,), std=(float("nan"),), channels=1)
    with pytest.raises(VisqError, match="mean must be finite"):
        Preprocess(8, 8, mean=(float("inf"),), std=(0.5,), channels=1)
    with pytest.raises(VisqError, match="image_size <= resize <= 8192, not 8 and 1000000000"):
        Preprocess(8, 10**9, mean=(0.5,), std=(0.5,), channels=1)
    for value in (224.5, float("inf"), None, [224]):
        with pytest.raises(VisqError, match="preprocess: "):
            Preprocess.from_dict({**transform.to_dict(), "image_size": value})
    with pytest.raises(VisqError, match="bicubic or bilinear"):
        Preprocess(8, 8, mean=(0.5,), std=(1.0,), channels=1, interpolation="box")  # type: ignore[arg-type]
