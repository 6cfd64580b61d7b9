"""The other families on the CUDA engine: attention, windows, samples, turns and resized maps in whole networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visq
from tests.models import test_efficientvmamba, test_localmamba, test_mambavision, test_vim_seg
from tests.runtime.cuda.test_networks import FEW, check_compiled, check_network
from visq.models import create_model, efficientvmamba, mambavision, vmamba_seg
from visq.recipes import get_recipe


def segmentation(head: str) -> Any:
    torch.manual_seed(0)
    model = create_model("vmamba_seg", embed_dim=8, depths=(1, 1), mlp_ratio=1, head=head, head_dim=8, num_classes=3)
    return vmamba_seg.fold_norms(model.eval())


#: Makes a small network, with pixels a side of its images.
NETWORKS: dict[str, tuple[Callable[[], Any], int]] = {
    "mambavision": (lambda: mambavision.fold_norms(test_mambavision.small()), 48),
    "efficientvmamba": (lambda: efficientvmamba.fold_norms(test_efficientvmamba.small()), 44),
    "localvim": (lambda: test_localmamba.small("localvim", depth=1, variant="rope"), 24),
    "localvmamba": (lambda: test_localmamba.small("localvmamba"), 24),
    "segmentation": (lambda: segmentation("light"), 32),
    "upernet": (lambda: segmentation("upernet"), 32),
    "vim_seg": (test_vim_seg.small, 32),
}
#: Networks of any image size: their recipes have no scales per position.
ANY_SIZE = ("segmentation", "upernet", "vim_seg")


def quantized(network: str, recipe: str, folder: Path) -> None:
    make, side = NETWORKS[network]
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    model, found = make(), get_recipe(recipe)
    found = found.without_positions() if network in ANY_SIZE else found
    visq.quantize(model, found, pixels, samples=2, held_out=1, out=folder, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FEW)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network(network: str, recipe: str, tmp_path: Path) -> None:
    quantized(network, recipe, tmp_path / "a")
    check_network(tmp_path / "a", batch=1, joined=0.25)  # rotations of a MambaVision join least: 35 kernels of 49


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mambavision", "segmentation"])
def test_kernels_compile_for_gpus(network: str, tmp_path: Path) -> None:
    quantized(network, "visq-w8a8-fused", tmp_path / "a")
    check_compiled(tmp_path / "a")
