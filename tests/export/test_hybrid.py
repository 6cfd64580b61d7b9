"""ONNX of networks with attention and windows: parts against the oracle, a whole hybrid in both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.lowering.bundles import ParameterBundle
from tests.lowering.test_mambavision import ready
from tests.models.test_localmamba import small
from tests.runtime.programs import Maker
from tests.runtime.test_attention import FLOATS, INTEGERS, attention
from visq.data import open_dataset
from visq.integer import operations as ir
from visq.integer.operations import DenseConv2d, Scan
from visq.lowering import lower
from visq.pipeline import quantize
from visq.recipes import get_recipe
from visq.runtime.bundle import read_bundle
from visq.runtime.oracle import Oracle

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")

from visq.export.network import artifact_to_onnx
from visq.export.program import rows_of_windows, to_onnx
from visq.export.runtimes import installed

IN_INTEGERS = [kinds for kinds in INTEGERS if "table" not in kinds]
IN_FLOAT = [FLOATS[0], FLOATS[1]]


def answers(content: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what each installed runtime makes of images."""
    return {name: open_content(content, 1)[0](images) for name, open_content in installed().items()}


@pytest.mark.parametrize("kinds", [*IN_INTEGERS, *IN_FLOAT], ids=range(len(IN_INTEGERS) + len(IN_FLOAT)))
@pytest.mark.parametrize("shape", [(5, 3, 7, 1), (17, 2, 16, 2)], ids=str)
def test_attention_is_the_oracles(kinds: tuple[str | None, ...], shape: tuple[int, int, int, int]) -> None:
    maker, output, _ = attention(kinds, *shape)
    maker.tensors[output] = maker.tensors[output].model_copy(update={"height": 1})
    program = maker.program(output).model_copy(update={"output_map": True})
    images = maker.images(2)
    expected = Oracle(program, maker.bundle)(images)
    for found in answers(to_onnx(program, maker.bundle).SerializeToString(), images).values():
        assert found.shape == expected.shape
        # A probability on the edge between two codes may fall to either side.
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
        assert np.median(np.abs(found - expected)) < 1e-5


def test_samples_of_a_map_and_their_merge() -> None:
    """A map of 5 x 5 has an odd side, so that samples from row or column 1 on end in zeros."""
    maker = Maker(0, size=5)
    maker.operation(ir.Patches(patch=1, stride=1), 25, 3)
    x, names = maker.store(), []
    for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
        source = ir.Sample(input=x, height=5, width=5, row=row, column=column, by_columns=row == 1)
        maker.operation(source, 9, 3)
        names.append(maker.store())
    a, b, c, d = names
    maker.operation(ir.MergeSamples(inputs=(a, b, c, d), height=5, width=5), 25, 3)
    images = maker.images(2)
    for name in (*names, maker.store()):
        program = maker.program(name).model_copy(update={"output_map": True})
        expected = Oracle(program, maker.bundle)(images)
        for found in answers(to_onnx(program, maker.bundle).SerializeToString(), images).values():
            assert np.array_equal(found, expected), name


@pytest.mark.parametrize("family", ["localvim", "localvmamba"])
def test_a_network_with_windowed_scans(family: str) -> None:
    model = small(family)
    program, bundle = lower(model), ParameterBundle(model)
    images = np.random.default_rng(0).standard_normal((2, 3, 24, 24)).astype(np.float32)
    expected = Oracle(program, bundle)(images)
    for found in answers(to_onnx(program, bundle).SerializeToString(), images).values():
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("side", "window"), [(4, 2), (5, 2), (3, 4), (3, 3)])
def test_windows_of_a_map(side: int, window: int) -> None:
    maker = Maker(0, size=side)
    positions, rows = side**2, len(rows_of_windows(side, window))
    maker.operation(ir.Patches(patch=1, stride=1), positions, 3)
    x = maker.store()
    maker.operation(ir.EnterWindows(input=x, side=side, window=window), rows, 3)
    inside = maker.store()
    maker.operation(ir.LeaveWindows(input=inside, side=side, window=window), positions, 3)
    images = maker.images(2)
    for name in (inside, maker.store()):
        height = 1 if name == inside else None
        maker.tensors[name] = maker.tensors[name].model_copy(update={"height": height})
        program = maker.program(name).model_copy(update={"output_map": True})
        expected = Oracle(program, maker.bundle)(images)
        for found in answers(to_onnx(program, maker.bundle).SerializeToString(), images).values():
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("windows", [(4, 2), (2, 1)], ids=str)
def test_an_fp32_hybrid_is_the_network(windows: tuple[int, int]) -> None:
    network = ready(windows=windows)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = network(images).numpy()
    content = to_onnx(lower(network), ParameterBundle(network)).SerializeToString()
    for found in answers(content, images.numpy()).values():
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "recipe", ["minmax-w8a8-full", pytest.param("visq-rotated-w4a8-fused", marks=pytest.mark.slow)]
)
def test_a_quantized_hybrid_is_close_to_the_engine(
    recipe: str,
    tmp_path: Path,
) -> None:
    network = ready(windows=(2, 1), depths=(1, 1, 2, 2))
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    dataset = open_dataset(str(tmp_path), network.card.preprocess, split="calib")
    images = next(iter(dataset.batches(3)))[0]
    quantize(network, get_recipe(recipe), dataset, out=tmp_path / "a", check=False)
    bundle = read_bundle(tmp_path / "a")
    program = bundle.config.program
    assert program is not None, bundle.config.no_program
    sources = [operation.source for operation in program.operations]
    kinds = (ir.Attention, ir.EnterWindows, ir.LeaveWindows, DenseConv2d)
    assert all(any(isinstance(source, kind) for source in sources) for kind in kinds)
    assert [source.length for source in sources if isinstance(source, Scan)] == [4, 1]
    expected = Oracle(program, bundle)(images.numpy())
    for found in answers(artifact_to_onnx(tmp_path / "a"), images.numpy()).values():
        noise = np.square(found - expected).sum() / np.square(expected).sum()
        assert noise < 10**-2.5 and (found.argmax(1) == expected.argmax(1)).all()
