"""Tests Vim's forward pass against the official arithmetic, a slow restatement, and its own stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from visq.errors import VisqError
from visq.models import VisionMamba, create_model
from visq.models.checkpoint import official_parameters

from .conftest import SMALL, randomized

GOLDEN = Path(__file__).parent / "golden_vim.safetensors"


def official_shapes(embed: int, depth: int, states: int, patch: int, channels: int, tokens: int, classes: int) -> dict:
    """Returns names and shapes of an official checkpoint."""
    inner, rank = 2 * embed, -(-embed // 16)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, embed),
        "pos_embed": (1, tokens, embed),
        "patch_embed.proj.weight": (embed, channels, patch, patch),
        "patch_embed.proj.bias": (embed,),
        "norm_f.weight": (embed,),
        "head.weight": (classes, embed),
        "head.bias": (classes,),
    }
    for i in range(depth):
        shapes[f"layers.{i}.norm.weight"] = (embed,)
        mixer = f"layers.{i}.mixer."
        shapes |= {mixer + "in_proj.weight": (2 * inner, embed), mixer + "out_proj.weight": (embed, inner)}
        shapes |= {mixer + "A_log": (inner, states), mixer + "A_b_log": (inner, states)}
        shapes |= {mixer + "D": (inner,), mixer + "D_b": (inner,)}
        for suffix in ("", "_b"):
            shapes |= {
                f"{mixer}conv1d{suffix}.weight": (inner, 1, 4),
                f"{mixer}conv1d{suffix}.bias": (inner,),
                f"{mixer}x_proj{suffix}.weight": (rank + 2 * states, inner),
                f"{mixer}dt_proj{suffix}.weight": (inner, rank),
                f"{mixer}dt_proj{suffix}.bias": (inner,),
            }
    return shapes


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vim_tiny", 197),
        ("vim_tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2", 730),
    ],
)
def test_names_and_shapes_are_the_official_ones(name: str, tokens: int) -> None:
    found = {key: tuple(value.shape) for key, value in create_model(name).state_dict().items()}
    assert found == official_shapes(192, 24, 16, 16, 3, tokens, 1000)


def test_matches_the_official_arithmetic() -> None:
    stored = load_file(GOLDEN)
    weights = {key.removeprefix("model."): value for key, value in stored.items() if key.startswith("model.")}
    model = create_model("vim", image_size=22, patch_size=6, stride=4, embed_dim=24, depth=3, d_state=5, num_classes=7)
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        logits = model.eval()(stored["images"])
    assert (logits - stored["logits"]).abs().max() <= 1e-4 * stored["logits"].abs().max()


class SlowVim:
    """Computes the equations of the Vim paper in float64 NumPy, token by token, one image at a time."""

    def __init__(self, weights: dict[str, Tensor], depth: int, patch: int, stride: int) -> None:
        self.w = {name: tensor.detach().double().numpy() for name, tensor in weights.items()}
        self.depth, self.patch, self.stride = depth, patch, stride

    def logits(self, image: np.ndarray) -> np.ndarray:
        tokens = self.tokens(image)
        middle = (len(tokens) - 1) // 2
        residual, hidden = np.zeros_like(tokens), tokens
        for i in range(self.depth):
            residual = residual + hidden
            hidden = self.mixer(f"layers.{i}.mixer.", rms_norm(residual, self.w[f"layers.{i}.norm.weight"]))
        feature = rms_norm((residual + hidden)[middle], self.w["norm_f.weight"])
        return self.w["head.weight"] @ feature + self.w["head.bias"]

    def tokens(self, image: np.ndarray) -> np.ndarray:
        kernel, bias = self.w["patch_embed.proj.weight"], self.w["patch_embed.proj.bias"]
        starts = range(0, image.shape[1] - self.patch + 1, self.stride)
        rows = [
            np.einsum("echw,chw->e", kernel, image[:, top : top + self.patch, left : left + self.patch]) + bias
            for top in starts
            for left in starts
        ]
        rows.insert(len(rows) // 2, self.w["cls_token"][0, 0])
        return np.stack(rows) + self.w["pos_embed"][0]

    def mixer(self, prefix: str, tokens: np.ndarray) -> np.ndarray:
        x, z = np.split(tokens @ self.w[prefix + "in_proj.weight"].T, 2, axis=1)
        forward = self.branch(prefix, "", x, z)
        backward = self.branch(prefix, "_b", x[::-1], z[::-1])[::-1]
        return (forward + backward) / 2 @ self.w[prefix + "out_proj.weight"].T

    def branch(self, prefix: str, suffix: str, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        kernel, bias = self.w[f"{prefix}conv1d{suffix}.weight"][:, 0], self.w[f"{prefix}conv1d{suffix}.bias"]
        A, D = -np.exp(self.w[f"{prefix}A{suffix}_log"]), self.w[f"{prefix}D{suffix}"]
        rank, states, taps = self.w[f"{prefix}dt_proj{suffix}.weight"].shape[1], A.shape[1], kernel.shape[1]
        state, outputs = np.zeros(A.shape), []
        for t in range(len(x)):
            u = bias.copy()
            for k in range(taps):
                if t - taps + 1 + k >= 0:
                    u += kernel[:, k] * x[t - taps + 1 + k]
            u = silu(u)
            projected = self.w[f"{prefix}x_proj{suffix}.weight"] @ u
            dt, B, C = projected[:rank], projected[rank : rank + states], projected[rank + states :]
            dt = self.w[f"{prefix}dt_proj{suffix}.weight"] @ dt + self.w[f"{prefix}dt_proj{suffix}.bias"]
            delta = np.log1p(np.exp(dt))
            state = np.exp(delta[:, None] * A) * state + delta[:, None] * B * u[:, None]
            outputs.append((state @ C + D * u) * silu(z[t]))
        return np.stack(outputs)


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("stride", [4, 3, 2])
def test_matches_the_equations_of_the_paper(stride: int) -> None:
    model = randomized(create_model("vim", **{**SMALL, "image_size": 13, "stride": stride}))
    images = torch.randn(2, 3, 13, 13, generator=torch.Generator().manual_seed(1))
    slow = SlowVim(official_parameters(model), SMALL["depth"], SMALL["patch_size"], stride)
    expected = np.stack([slow.logits(image) for image in images.double().numpy()])
    with torch.no_grad():
        logits = model(images).double().numpy()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_drop_path_does_nothing_in_evaluation(small: VisionMamba) -> None:
    images = torch.randn(2, 3, 12, 12)
    dropping = create_model("vim", **SMALL, drop_path=0.5).eval()
    dropping.load_state_dict(small.state_dict())
    assert torch.equal(dropping(images), small(images))


def test_stages_chain_to_the_forward_pass(small: VisionMamba) -> None:
    images = torch.randn(2, 3, 12, 12)
    state: tuple[Tensor, ...] = (images,)
    for stage in small.stages():
        state = stage.forward(*state)
    assert torch.equal(state[0], small(images))
    assert [stage.name for stage in small.stages()] == ["embed", "layers.0", "layers.1", "classify"]


def test_every_parameter_receives_a_gradient(small: VisionMamba) -> None:
    small.train()(torch.randn(2, 3, 12, 12)).square().sum().backward()
    without = [name for name, p in small.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 12, 12), (1, 3, 12, 8)])
def test_images_of_another_size_are_refused(small: VisionMamba, shape: tuple[int, ...]) -> None:
    with pytest.raises(VisqError, match="takes images of 3x12x12, got"):
        small(torch.zeros(shape))


def test_exports_with_a_free_batch_size(small: VisionMamba) -> None:
    exported = torch.export.export(
        small, (torch.randn(2, 3, 12, 12),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    images = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(exported.module()(images), small(images))


def test_compiles_as_one_graph_with_gradients(small: VisionMamba) -> None:
    images = torch.randn(2, 3, 12, 12)
    compiled = torch.compile(small.train(), backend="aot_eager", fullgraph=True)
    small(images).sum().backward()
    expected = {name: p.grad.clone() for name, p in small.named_parameters() if p.grad is not None}
    small.zero_grad()
    compiled(images).sum().backward()
    for name, parameter in small.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")
