"""ONNX of networks with attention and windows: parts against the oracle, a whole hybrid in both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.lowering.test_mambavision import ready
from tests.runtime.test_attention import FLOATS, INTEGERS, attention
from visq.data import open_dataset
from visq.integer import operations as ir
from visq.integer.operations import DenseConv2d, Scan
from visq.pipeline import quantize
from visq.recipes import get_recipe
from visq.runtime.bundle import read_bundle
from visq.runtime.oracle import Oracle

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")

from visq.export.network import artifact_to_onnx
from visq.export.program import to_onnx
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
