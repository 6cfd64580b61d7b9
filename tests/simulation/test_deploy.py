"""Tests that deployed networks have the engine's bits. tests/lowering runs every recipe on whole networks."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visq
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.models import VisionMamba, create_model
from visq.models.layers import Linear
from visq.quant.quantizer import Quantizer
from visq.simulation import deploy

GEOMETRY = {"image_size": 28, "patch_size": 7, "stride": 7, "channels": 1, "embed_dim": 16, "depth": 2}


@pytest.fixture(scope="module")
def images() -> Tensor:
    card = visq.load_model("vim_nano_fmnist").card
    dataset = visq.data.open_dataset("fashion-mnist", card.preprocess, split="test")
    return next(iter(dataset.subset(5, 0).batches(5)))[0]


@pytest.fixture
def quantized(tmp_path: Path) -> VisionMamba:
    torch.manual_seed(0)
    model = create_model("vim", **GEOMETRY, num_classes=10)
    model.card = visq.load_model("vim_nano_fmnist").card
    visq.quantize(model, "visq-w4a4", "fashion-mnist", samples=4, out=tmp_path / "artifact")
    return model


@torch.no_grad()
def test_calibrated_saved_and_deployed_are_one(quantized: VisionMamba, images: Tensor, tmp_path: Path) -> None:
    expected = quantized.eval()(images)
    assert visq.load(tmp_path / "artifact")(images).equal(expected)
    assert np.array_equal(visq.load(tmp_path / "artifact", backend="int")(images.numpy()), expected.numpy())
    # Neither the batch nor the number of threads may change a bit.
    assert torch.cat([quantized(image[None]) for image in images]).equal(expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert quantized(images).equal(expected)
    finally:
        torch.set_num_threads(threads)


def test_without_no_grad_too(quantized: VisionMamba, images: Tensor, tmp_path: Path) -> None:
    """No parameter of a calibrated or loaded network requires a gradient."""
    with torch.no_grad():
        expected = quantized.eval()(images)
    assert quantized(images).equal(expected) and visq.load(tmp_path / "artifact")(images).equal(expected)


def test_gradients_go_through_pytorch(quantized: VisionMamba, images: Tensor) -> None:
    x, quantized = images.clone().requires_grad_(), quantized.eval().requires_grad_()
    quantized(x).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert quantized.layers[0].norm.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_copies_are_deployed_by_themselves(quantized: VisionMamba, images: Tensor) -> None:
    expected = quantized.eval()(images)
    twin = copy.deepcopy(quantized)
    for parameter in quantized.parameters():
        parameter.zero_()
    assert twin(images).equal(expected)


class Net(nn.Module):
    """A network of one quantized linear."""

    def __init__(self, width: int, bits: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = Linear(width, 3)
        self.linear.weight.data.uniform_(0, 1)
        high = 2 ** (bits - 1) - 1
        self.linear.site_weight.quantizer = Quantizer(Spec(bits=bits), torch.full((3,), 1 / high), axis=0)
        self.linear.site_in.quantizer = Quantizer(
            Spec(bits=bits, symmetric=False), torch.full((1,), 2 / (2 * high)), torch.full((1,), float(high))
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 300, 518, 519, 4000])
def test_sums_are_exact_however_long(width: int) -> None:
    """Sums beyond 2^24 stay exact too, although float32 does not hold every whole number there."""
    net = deploy(Net(width, bits=8))
    x = torch.ones(2, 1, width) + torch.linspace(-2, 0, 2 * width).view(2, 1, width) * 0.01
    linear = net.linear
    codes, weights = linear.site_in.quantizer, linear.site_weight.quantizer
    sums = codes.integers(x).numpy().astype(np.int64) @ weights.encode(linear.weight).numpy().astype(np.int64).T
    scale = weights.scale.numpy() * codes.scale.numpy()
    expected = sums.astype(np.float32) * scale + linear.bias.numpy()
    assert np.array_equal(net(x).numpy(), expected)
    assert np.abs(sums).max() > 2**24 or width < 4000


@torch.no_grad()
def test_forms_follow_parameters_and_quantizers() -> None:
    x = torch.linspace(-1, 1, 2 * 5 * 7).view(2, 5, 7)
    changes = {
        "weight": lambda linear: linear.weight.mul_(0.5),
        "bias": lambda linear: linear.bias.add_(1),
        "scale": lambda linear: linear.site_in.quantizer.scale.mul_(0.5),
        "quantizer": lambda linear: setattr(linear.site_in, "quantizer", None),
    }
    for what, change in changes.items():
        net = deploy(Net(7, bits=4))
        before = net(x)
        change(net.linear)
        fresh = deploy(Net(7, bits=4))
        change(fresh.linear)
        assert net(x).equal(fresh(x)) and not net(x).equal(before), what


def test_state_is_untouched(quantized: VisionMamba) -> None:
    """Deploying adds no parameter, buffer or module."""
    model = create_model("vim", **GEOMETRY, num_classes=10)
    names = [name for name, _ in model.named_modules()]
    keys = list(model.state_dict())
    deploy(model)
    assert [name for name, _ in model.named_modules()] == names and list(model.state_dict()) == keys


def test_a_device_without_the_arithmetic_is_refused() -> None:
    """The forward pass raises an error with advice, instead of a slow loop over images on the host."""
    model = deploy(create_model("vim", **GEOMETRY, num_classes=10).eval().requires_grad_(False)).to("meta")
    with pytest.raises(VisqError, match=r"which has no kernel for meta; move the network and its images to the CPU"):
        model(torch.empty(1, 1, 28, 28, device="meta"))
