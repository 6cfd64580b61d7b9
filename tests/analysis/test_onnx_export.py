"""Networks give the same in onnxruntime as in PyTorch; one that cannot be exported loses its row only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from visq.analysis.bench import ONNX, bench, example
from visq.models import create_model, load_model
from visq.progress import Progress

WHY = "the extra is not installed: pip install 'visq[onnx]'"
pytest.importorskip("onnxruntime", reason=WHY)
pytest.importorskip("onnxscript", reason=WHY)


def small_vim() -> Any:
    torch.manual_seed(0)
    geometry = dict(image_size=16, patch_size=4, stride=4, channels=1, embed_dim=16, depth=1, d_state=4, num_classes=4)
    return create_model("vim", **geometry).eval().requires_grad_(False)


@pytest.mark.parametrize("make", [small_vim, lambda: load_model("vim_nano_fmnist")], ids=["small", "packaged"])
def test_outputs_are_those_of_pytorch(make: Any) -> None:
    from visq.analysis.onnx_export import OnnxNetwork

    network = make().eval()
    exported = OnnxNetwork(network, example(network.card.preprocess, 1), threads=1)
    for batch in (1, 3):
        images = example(network.card.preprocess, batch)
        with torch.no_grad():
            expected = network(torch.from_numpy(images)).numpy()
        assert abs(exported(images) - expected).max() <= 1e-4 * abs(expected).max()


class Branching(nn.Module):
    """Has a graph that depends on its input, which no exporter can trace."""

    def __init__(self) -> None:
        super().__init__()
        self.card = small_vim().card

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3)) if images.sum() > 0 else images.amax((1, 2, 3))


def test_bench_goes_on_without_onnxruntime(capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = bench(
        Branching(), batches=[1], threads=1, seconds=0, backends=["eager-fp32", ONNX], progress=Progress("plain")
    )
    assert [row["backend"] for row in rows] == ["eager-fp32"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"no {ONNX}: ")]
    assert len(said) == 1 and "cannot be exported" in said[0]
