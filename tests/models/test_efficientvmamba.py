"""Tests a small random EfficientVMamba: its forward pass, samples, folded norms, and the geometry of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visq.errors import VisqError
from visq.models import create_model, load_model, save_checkpoint
from visq.models.checkpoint import official_parameters
from visq.models.efficientvmamba import EfficientVMamba, EfficientVMambaConfig, fold_norms
from visq.models.efficientvmamba_checkpoint import infer_efficientvmamba, pack, unpack
from visq.models.registry import get_card, list_models
from visq.models.skipping import ORDER, MergeSamples, SampleMap
from visq.models.vmamba_checkpoint import infer_vmamba
from visq.quant.site import named_sites

#: A 44-pixel image has maps of 11, 6, 3 and 2: odd and even ones are sampled, odd ones are merged.
SMALL: dict[str, Any] = {
    "image_size": 44,
    "dims": (8, 16, 16, 24),
    "depths": (1, 2, 1, 1),
    "d_state": 4,
    "mlp_ratio": 2,
    "hidden_ratio": 2,
    "num_classes": 5,
}
PUBLISHED = {"tiny": 6.494, "small": 11.274, "base": 33.717}


def small(**changes: Any) -> EfficientVMamba:
    """Returns a network whose norms have statistics of their own."""
    torch.manual_seed(0)
    model: EfficientVMamba = create_model("efficientvmamba", **{**SMALL, **changes}).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.ndim == 1 and not name.endswith(".D"):
                tensor.add_(torch.randn_like(tensor) * 0.2)
            elif tensor.ndim == 2 and ".directions." not in name:
                tensor.mul_(5)
    return model


@torch.no_grad()
def test_forward_against_one_in_one_piece() -> None:
    model = small()
    weights = pack(model.config, official_parameters(model))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def batch_norm(name: str, x: Tensor) -> Tensor:
        statistics = (weights[f"{name}.running_mean"], weights[f"{name}.running_var"])
        return F.batch_norm(x, *statistics, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def conv(name: str, x: Tensor) -> Tensor:
        weight = weights[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2, groups=groups)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def scan(name: str, index: int, u: Tensor) -> Tensor:
        rank, inner = weights[f"{name}.dt_projs_weight"].shape[2], u.shape[2]
        dt, B, C = (u @ weights[f"{name}.x_proj_weight"][index].T).split([rank, 4, 4], dim=-1)
        delta = dt @ weights[f"{name}.dt_projs_weight"][index].T + weights[f"{name}.dt_projs_bias"][index]
        delta, own = F.softplus(delta), slice(index * inner, (index + 1) * inner)
        A, state, rows = -weights[f"{name}.A_logs"][own].exp(), torch.zeros(len(u), inner, 4), []
        for t in range(u.shape[1]):
            step = delta[:, t, :, None]
            state = (step * A).exp() * state + step * B[:, t, None] * u[:, t, :, None]
            rows.append((state * C[:, t, None]).sum(-1) + weights[f"{name}.Ds"][own] * u[:, t])
        return torch.stack(rows, 1)

    def mixed(name: str, x: Tensor) -> Tensor:
        x, z = linear(f"{name}.in_proj", x).chunk(2, dim=-1)
        u = F.silu(conv(f"{name}.conv2d", x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        height, width = u.shape[1:3]
        y = torch.zeros_like(u)
        u = F.pad(u, (0, 0, 0, width % 2, 0, height % 2))
        for index, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
            part = u[:, row::2, column::2]
            part = part.transpose(1, 2) if row else part
            found = scan(f"{name}", index, part.flatten(1, 2)).unflatten(1, part.shape[1:3])
            found = found.transpose(1, 2) if row else found
            there = y[:, row::2, column::2]
            there.copy_(found[:, : there.shape[1], : there.shape[2]])
        return linear(f"{name}.out_proj", norm(f"{name}.out_norm", y) * F.silu(z))

    def gated(name: str, x: Tensor) -> Tensor:
        gate = F.gelu(linear(f"{name}.global_reduce", norm(f"{name}.norm", x).mean((1, 2))))
        return x * linear(f"{name}.channel_select", gate).sigmoid()[:, None, None]

    images = torch.randn(2, 3, 44, 44)
    x = F.conv2d(images, weights["patch_embed.0.weight"], weights["patch_embed.0.bias"], 4).permute(0, 2, 3, 1)
    x = norm("patch_embed.2", x)
    for level, depth in enumerate(SMALL["depths"]):
        for j in range(depth):
            if level < 2:
                name = f"layers.{level}.blocks.{j}"
                y = norm(f"{name}.norm", x)
                branch = batch_norm(f"{name}.conv_branch.1", conv(f"{name}.conv_branch.0", y.permute(0, 3, 1, 2)))
                branch = conv(f"{name}.conv_branch.3", F.gelu(branch)).permute(0, 2, 3, 1)
                x = x + gated(f"{name}.se", mixed(f"{name}.op", y)) + gated(f"{name}.se", branch)
                x = x + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))))
                continue
            name = f"layers.{level}.{j + 1}"
            y = F.relu(batch_norm(f"{name}.conv_pw.1", conv(f"{name}.conv_pw.0", x.permute(0, 3, 1, 2))))
            y = F.relu(batch_norm(f"{name}.conv_dw.1", conv(f"{name}.conv_dw.0", y)))
            gate = conv(f"{name}.se.conv_expand", F.relu(conv(f"{name}.se.conv_reduce", y.mean((2, 3), keepdim=True))))
            y = batch_norm(f"{name}.conv_pw2.1", conv(f"{name}.conv_pw2.0", y * gate.sigmoid()))
            x = x + y.permute(0, 2, 3, 1)
        if level < 3:
            name = f"layers.{level}.downsample" if level < 2 else f"layers.{level}.{depth + 2}"
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
            x = linear(f"{name}.reduction", norm(f"{name}.norm", x))
    expected = linear("classifier.head", norm("classifier.norm", x).mean((1, 2)))
    assert torch.allclose(model(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.05


@torch.no_grad()
def test_folded_norms_compute_the_same() -> None:
    model, images = small(), torch.randn(2, 3, 44, 44)
    before = model(images)
    folded = fold_norms(model)
    assert folded.config.norm == "folded"
    assert not any("running" in name for name in folded.state_dict())
    assert torch.allclose(folded(images), before, rtol=1e-4, atol=1e-4)
    again = EfficientVMamba(folded.config)
    again.load_state_dict(folded.state_dict())  # a folded network is one of its own
    assert fold_norms(folded) is folded


@pytest.mark.parametrize("height, width", [(4, 4), (5, 3), (1, 2), (6, 7)])
def test_samples_come_back(height: int, width: int) -> None:
    maps = torch.randn(2, height, width, 3)
    samples = [SampleMap(*place)(maps) for place in ORDER]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    assert [tuple(sample.shape[1:3]) for sample in samples] == [(rows, columns), (columns, rows)] * 2
    assert sum(float(sample.square().sum()) for sample in samples) == pytest.approx(float(maps.square().sum()))
    merged = MergeSamples()(*[sample.flatten(1, 2) for sample in samples], height, width)
    assert torch.equal(merged, maps.flatten(1, 2))


def test_every_site_is_in_the_stage_that_runs_it() -> None:
    model = small()
    prefixes = [prefix for stage in model.stages() for prefix in stage.modules]
    for name, _ in named_sites(model):
        assert sum(name.startswith(f"{prefix}.") for prefix in prefixes) == 1, name


def test_a_checkpoint_comes_back_trained_or_folded(tmp_path: Path) -> None:
    model, images = small(), torch.randn(2, 3, 44, 44)
    save_checkpoint(model, tmp_path / "model.safetensors")
    trained = load_model("efficientvmamba", tmp_path / "model.safetensors", fold=False)
    assert trained.config == model.config
    with torch.no_grad():
        assert torch.equal(trained(images), model(images))
        loaded = load_model(None, tmp_path / "model.safetensors")
        assert loaded.config.norm == "folded" and loaded.card.config == loaded.config
        assert torch.allclose(loaded(images), model(images), rtol=1e-4, atol=1e-4)
        save_checkpoint(loaded, tmp_path / "folded.safetensors")
        assert torch.equal(load_model(None, tmp_path / "folded.safetensors")(images), loaded(images))


def test_every_published_geometry_is_found_from_its_shapes() -> None:
    for size, millions in PUBLISHED.items():
        card = get_card(f"efficient_vmamba_{size}")
        with torch.device("meta"):
            network = EfficientVMamba(card.config)
        tensors = pack(card.config, official_parameters(network))
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        known = [other.config for other in list_models() if isinstance(other.config, EfficientVMambaConfig)]
        assert infer_efficientvmamba(shapes, {}, known) == card.config
        assert unpack(card.config, tensors).keys() == official_parameters(network).keys()
        assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)
        with pytest.raises(VisqError, match="a convolution lies beside the scans, as in EfficientVMamba"):
            infer_vmamba(shapes, {})


def test_other_variants_are_refused() -> None:
    tensors = pack(small().config, official_parameters(small()))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert infer_efficientvmamba(shapes, {"image_size": 44}) == EfficientVMambaConfig(**SMALL)
    without = {name: shape for name, shape in shapes.items() if name != "classifier.head.weight"}
    with pytest.raises(VisqError, match=r"not an EfficientVMamba checkpoint: classifier\.head\.weight missing"):
        infer_efficientvmamba(without, {})
    ungated = {**shapes, "layers.0.blocks.0.op.in_proj.weight": (16, 8)}
    with pytest.raises(VisqError, match="in_proj makes 16 channels, the scan has 16"):
        infer_efficientvmamba(ungated, {})
    moved = {name.replace("layers.3.1.", "layers.3.blocks.0."): shape for name, shape in shapes.items()}
    with pytest.raises(VisqError, match="2 levels with scans, then levels of inverted residuals"):
        infer_efficientvmamba(moved, {})
    with pytest.raises(VisqError, match="dims and depths need one number a level, not 4 and 3"):
        EfficientVMambaConfig(depths=(2, 2, 4))
