"""ONNX of one small FP32 network of each family whose program has operations of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.lowering.bundles import ParameterBundle
from tests.models import test_efficientvmamba, test_localmamba, test_mambavision, test_vim_seg
from visq.lowering import lower
from visq.models import create_model, efficientvmamba, mambavision, vmamba_seg

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")

from visq.export.program import to_onnx
from visq.export.runtimes import installed


def segmentation(head: str) -> Any:
    torch.manual_seed(0)
    options = dict(embed_dim=8, depths=(1, 1), mlp_ratio=1, head_dim=8, num_classes=3)
    return vmamba_seg.fold_norms(create_model("vmamba_seg", head=head, **options).eval())


NETWORKS: dict[str, Callable[[], Any]] = {
    "mambavision": lambda: mambavision.fold_norms(test_mambavision.small(windows=(4, 2), depths=(1, 1, 2, 2))),
    "mambavision in windows": lambda: mambavision.fold_norms(test_mambavision.small(windows=(2, 1))),
    "efficientvmamba": lambda: efficientvmamba.fold_norms(test_efficientvmamba.small(depths=(1, 1, 1, 1))),
    "localvim": lambda: test_localmamba.small("localvim"),
    "localvmamba": lambda: test_localmamba.small("localvmamba"),
    "vmamba_seg": lambda: segmentation("light"),
    "vmamba_seg with UperNet": lambda: segmentation("upernet"),
    "vim_seg": test_vim_seg.small,
}
#: What `make test-slow` runs.
LATER = ("mambavision in windows", "vmamba_seg")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LATER else name for name in NETWORKS]
)
def test_an_fp32_network_computes_what_it_did(name: str) -> None:
    network = NETWORKS[name]().requires_grad_(False)
    size = getattr(network.config, "image_size", 32)
    images = torch.randn(2, network.config.channels, size, size)
    expected = network(images).numpy()
    content = to_onnx(lower(network, (size, size)), ParameterBundle(network)).SerializeToString()
    for open_content in installed().values():
        found = open_content(content, 1)[0](images.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
