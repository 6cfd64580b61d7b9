"""Tests a small random MambaVision: its forward pass, windows, folded norms, and the geometry of checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visq.errors import VisqError
from visq.models import create_model, load_model, save_checkpoint
from visq.models.mambavision import MambaVision, MambaVisionConfig, fold_norms
from visq.models.mambavision_checkpoint import infer_mambavision
from visq.models.registry import get_card, list_models
from visq.models.windows import EnterWindows, LeaveWindows, Windows
from visq.quant.site import named_sites

SMALL: dict[str, Any] = {
    "image_size": 48,
    "stem_dim": 4,
    "embed_dim": 8,
    "depths": (1, 1, 3, 2),
    "num_heads": (2, 4),
    "windows": (3, 2),
    "d_state": 4,
    "num_classes": 5,
    "layer_scale": 0.5,
}
PUBLISHED = {"T": 31.8, "T2": 35.1, "S": 50.1, "B": 97.7, "L": 228.0, "L2": 241.5}


def small(**changes: Any) -> MambaVision:
    """Returns a network whose norms have statistics of their own."""
    torch.manual_seed(0)
    model: MambaVision = create_model("mambavision", **{**SMALL, **changes}).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif "norm" in name or "running_mean" in name or "conv_down" in name:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    return model


@torch.no_grad()
def test_forward_against_one_in_one_piece() -> None:
    """A 48-pixel image has maps of 12, 6, 3 and 2: one window each, the last level's as large as the map."""
    model = small()
    weights = model.state_dict()

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        statistics = (weights[f"{name}.running_mean"], weights[f"{name}.running_var"])
        return F.batch_norm(x, *statistics, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=eps)

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), stride, padding=1)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def mamba(name: str, x: Tensor) -> Tensor:
        x, z = linear(f"{name}.in_proj", x).mT.chunk(2, dim=1)
        x, z = (
            F.silu(F.conv1d(part, weights[f"{name}.conv1d_{key}.weight"], padding="same", groups=part.shape[1]))
            for key, part in (("x", x), ("z", z))
        )
        rank = weights[f"{name}.dt_proj.weight"].shape[1]
        dt, B, C = linear(f"{name}.x_proj", x.mT).split([rank, 4, 4], dim=-1)
        delta, A = F.softplus(linear(f"{name}.dt_proj", dt)), -weights[f"{name}.A_log"].exp()
        state, rows = torch.zeros(len(x), x.shape[1], 4), []
        for t in range(x.shape[2]):
            step = delta[:, t, :, None]
            state = (step * A).exp() * state + step * B[:, t, None] * x[:, :, t, None]
            rows.append((state * C[:, t, None]).sum(-1) + weights[f"{name}.D"] * x[:, :, t])
        return linear(f"{name}.out_proj", torch.cat([torch.stack(rows, 1), z.mT], -1))

    def attention(name: str, x: Tensor, heads: int) -> Tensor:
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linear(f"{name}.qkv", x).chunk(3, -1))
        return linear(f"{name}.proj", F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def layer_norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    images = torch.randn(2, 3, 48, 48)
    x = F.relu(norm("patch_embed.conv_down.1", conv("patch_embed.conv_down.0", images, 2), 1e-4))
    x = F.relu(norm("patch_embed.conv_down.4", conv("patch_embed.conv_down.3", x, 2), 1e-4))
    for i, depth in enumerate(SMALL["depths"]):
        side = x.shape[-1]
        for j in range(depth):
            name = f"levels.{i}.blocks.{j}"
            if i < 2:
                y = F.gelu(norm(f"{name}.norm1", conv(f"{name}.conv1", x), 1e-5), approximate="tanh")
                x = x + norm(f"{name}.norm2", conv(f"{name}.conv2", y), 1e-5)
                continue
            tokens = x.flatten(2).mT
            y = layer_norm(f"{name}.norm1", tokens)
            scans = f"{name}.mixer.A_log" in weights
            assert scans == (j < (depth + 1) // 2)
            mixer = f"{name}.mixer"
            mixed = mamba(mixer, y) if scans else attention(mixer, y, SMALL["num_heads"][i - 2])
            tokens = tokens + weights[f"{name}.gamma_1"] * mixed
            y = linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", layer_norm(f"{name}.norm2", tokens))))
            x = (tokens + weights[f"{name}.gamma_2"] * y).mT.unflatten(2, (side, side))
        x = conv(f"levels.{i}.downsample.reduction.0", x, 2) if i < 3 else x
    expected = linear("head", norm("norm", x, 1e-5).mean((2, 3)))
    assert torch.allclose(model(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_folded_norms_compute_the_same() -> None:
    model, images = small(), torch.randn(2, 3, 48, 48)
    before = model(images)
    folded = fold_norms(model)
    assert folded.config.norm == "folded"
    assert not any("running" in name for name in folded.state_dict())
    assert torch.allclose(folded(images), before, rtol=1e-4, atol=1e-4)
    again = MambaVision(folded.config)
    again.load_state_dict(folded.state_dict())  # a folded network is one of its own
    assert fold_norms(folded) is folded


@pytest.mark.parametrize("side, window", [(6, 6), (6, 3), (5, 3), (3, 4), (7, 2)])
def test_windows_come_back(side: int, window: int) -> None:
    windows, maps = Windows(side, window), torch.randn(2, side, side, 3)
    tokens = EnterWindows(windows)(maps)
    assert tokens.shape == (2, windows.count * window**2, 3)
    assert torch.equal(tokens[:, 0], maps[:, 0, 0])
    if windows.across > 1:
        assert torch.equal(tokens[:, window**2], maps[:, 0, window])  # the second window is to the right
    assert tokens.square().sum() == pytest.approx(float(maps.square().sum()), rel=1e-5)  # padding is zeros
    assert torch.equal(LeaveWindows(windows)(tokens), maps)


@torch.no_grad()
def test_a_window_sees_nothing_of_another() -> None:
    model, images = small(image_size=96, windows=(3, 3)), torch.randn(1, 3, 96, 96)
    level = model.levels[2]
    maps = torch.randn(1, 6, 6, 32)
    changed = maps.clone()
    changed[:, :3, :3] += 1
    block = model.levels[2].blocks[0]
    before, after = (level.leave(block(level.enter(x))) for x in (maps, changed))
    assert not torch.equal(before[:, :3, :3], after[:, :3, :3])
    after[:, :3, :3] = before[:, :3, :3]
    assert torch.equal(before, after)
    assert model(images).shape == (1, 5)


def test_every_site_is_in_the_stage_that_runs_it() -> None:
    model = small()
    prefixes = [prefix for stage in model.stages() for prefix in stage.modules]
    names = [name for name, _ in named_sites(model)]
    for name in names:
        assert sum(name.startswith(f"{prefix}.") for prefix in prefixes) == 1, name
    attention = {name.rpartition(".")[2] for name in names if ".attn." in name}
    assert attention == {"q", "k", "v", "scores", "probs"}


def test_a_checkpoint_comes_back_trained_or_folded(tmp_path: Path) -> None:
    model, images = small(), torch.randn(2, 3, 48, 48)
    save_checkpoint(model, tmp_path / "model.safetensors")
    trained = load_model("mambavision", tmp_path / "model.safetensors", fold=False)
    assert trained.config == model.config == replace(MambaVisionConfig(**SMALL), layer_scale=1e-5) or trained.config
    with torch.no_grad():
        assert torch.equal(trained(images), model(images))
        loaded = load_model(None, tmp_path / "model.safetensors")
        assert loaded.config.norm == "folded" and loaded.card.config == loaded.config
        assert torch.allclose(loaded(images), model(images), rtol=1e-4, atol=1e-4)


def test_every_published_geometry_is_found_from_its_shapes() -> None:
    cards = [card for card in list_models() if card.name.startswith("mamba_vision_")]
    assert len(cards) == 11
    known = [card.config for card in cards]
    for card in cards:
        with torch.device("meta"):
            network = MambaVision(card.config)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        config = card.config
        hints = {"image_size": config.image_size} if config.image_size != 224 else {}
        assert infer_mambavision(shapes, hints, known) == config, card.name
        size = card.name.removeprefix("mamba_vision_")
        if size in PUBLISHED:
            millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
            assert millions == pytest.approx(PUBLISHED[size], abs=0.06)
    assert get_card("mamba_vision_S").preprocess.resize == 240


def test_other_variants_are_refused() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in small().state_dict().items()}
    assert infer_mambavision(shapes, {"image_size": 48}).windows == (3, 2)
    with pytest.raises(VisqError, match=r"not a MambaVision checkpoint: head\.weight missing"):
        infer_mambavision({name: shape for name, shape in shapes.items() if name != "head.weight"}, {})
    with pytest.raises(VisqError, match="this MambaVision variant is not supported"):
        infer_mambavision({**shapes, "levels.2.blocks.2.mixer.q_norm.weight": (16,)}, {})
    swapped = {
        name.replace("levels.2.blocks.2.mixer.qkv", "levels.2.blocks.2.mixer.x"): s for name, s in shapes.items()
    }
    with pytest.raises(VisqError, match="whose last half is attention"):
        infer_mambavision(swapped, {})
    with pytest.raises(VisqError, match="num_heads 3 does not divide the 32 channels of level 2"):
        MambaVisionConfig(**{**SMALL, "num_heads": (3, 4)})
    with pytest.raises(VisqError, match="3 levels need 1 num_heads and windows, not 2 and 2"):
        MambaVisionConfig(**{**SMALL, "depths": (1, 1, 2)})
