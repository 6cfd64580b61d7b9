"""Tests small random LocalVims and LocalVMambas: orders of tokens, forward passes, and the geometry of checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visq.errors import VisqError
from visq.models import create_model, load_model, save_checkpoint
from visq.models.checkpoint import official_parameters
from visq.models.family import family_of
from visq.models.local_scan import Order, directions_of
from visq.models.localvim import LocalVim
from visq.models.localvim_checkpoint import infer_localvim
from visq.models.localvmamba import LocalVMamba
from visq.models.localvmamba_checkpoint import infer_localvmamba
from visq.models.registry import get_card, list_models
from visq.models.vmamba_checkpoint import infer_vmamba
from visq.quant.site import named_sites

SMALL_VIM: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 8,
    "embed_dim": 8,
    "depth": 2,
    "d_state": 4,
    "reduced": 4,
    "directions": ["h_flip v w2 w2_flip", "h v_flip w3 w2_flip"],
    "num_classes": 5,
}
SMALL_VMAMBA: dict[str, Any] = {
    "image_size": 24,
    "embed_dim": 8,
    "depths": [1, 1],
    "d_state": 4,
    "reduction": 4,
    "directions": ["h v_flip w2 w4_flip", "h_flip v w2 w2_flip"],
    "num_classes": 5,
}
#: Millions of parameters, as the public code counts them.
PUBLISHED = {
    "local_vim_tiny": 7.994,
    "local_vim_tiny_middle_cls_token": 7.995,
    "local_vim_tiny_wo_search": 7.994,
    "local_vim_small": 27.784,
    "local_vssm_tiny": 25.527,
    "local_vssm_small": 49.749,
}


def small(family: str, **changes: Any) -> Any:
    """Returns a network whose norms, biases and positions are not those of the start."""
    torch.manual_seed(0)
    base = SMALL_VIM if family == "localvim" else SMALL_VMAMBA
    model = create_model(family, **{**base, **changes}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "freqs" not in name and "A_log" not in name and "dt_proj" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def walk(direction: str, height: int, width: int) -> list[int]:
    """Returns the positions that a direction visits, row by row numbers; -1 for padding."""
    base, _, flip = direction.partition("_")
    if base == "h":
        visited = [y * width + x for y in range(height) for x in range(width)]
    elif base == "v":
        visited = [y * width + x for x in range(width) for y in range(height)]
    else:
        side = int(base[1:])
        visited = [
            (y + i) * width + x + j if y + i < height and x + j < width else -1
            for y in range(0, height, side)
            for x in range(0, width, side)
            for i in range(side)
            for j in range(side)
        ]
    return visited[::-1] if flip else visited


@pytest.mark.parametrize("height, width", [(4, 4), (3, 3), (3, 5)])
@pytest.mark.parametrize("direction", ["h", "h_flip", "v", "v_flip", "w2", "w2_flip", "w3", "w7_flip"])
def test_an_order_visits_the_map_and_comes_back(direction: str, height: int, width: int) -> None:
    tokens = torch.arange(1.0, height * width + 1).view(1, -1, 1)
    order = Order(direction)
    ordered = order(tokens, height, width)
    assert ordered.flatten().tolist() == [place + 1 for place in walk(direction, height, width)]
    assert torch.equal(order.back(ordered, height, width), tokens)
    middle = height * width // 2
    with_token = torch.cat([tokens[:, :middle], torch.full((1, 1, 1), 99.0), tokens[:, middle:]], 1)
    order = Order(direction, class_token=True)
    ordered = order(with_token, height, width)
    expected = [place + 1 for place in walk(direction, height, width)]
    assert ordered.flatten().tolist() == [*expected[:middle], 99, *expected[middle:]]
    assert torch.equal(order.back(ordered, height, width), with_token)


def scan(weights: dict[str, Tensor], u: Tensor) -> Tensor:
    """Returns the selective scan of u [B, L, C] by a direction's parameters."""
    states, rank = weights["A_log"].shape[1], weights["dt_proj.weight"].shape[1]
    dt, B, C = F.linear(u, weights["x_proj.weight"]).split([rank, states, states], -1)
    delta = F.softplus(F.linear(dt, weights["dt_proj.weight"], weights["dt_proj.bias"]))
    A, state, rows = -weights["A_log"].exp(), torch.zeros(len(u), u.shape[2], states), []
    for t in range(u.shape[1]):
        step = delta[:, t, :, None]
        state = (step * A).exp() * state + step * B[:, t, None] * u[:, t, :, None]
        rows.append((state * C[:, t, None]).sum(-1) + weights["D"] * u[:, t])
    return torch.stack(rows, 1)


def below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def gated(weights: dict[str, Tensor], y: Tensor) -> Tensor:
    """Returns y [B, L, C] times the gate of its channels."""
    mean = F.layer_norm(y, y.shape[-1:], weights["norm.weight"], weights["norm.bias"]).mean(1, keepdim=True)
    hidden = F.gelu(F.linear(mean, weights["global_reduce.weight"], weights["global_reduce.bias"]))
    return y * torch.sigmoid(F.linear(hidden, weights["channel_select.weight"], weights["channel_select.bias"]))


def picked(x: Tensor, places: list[int]) -> Tensor:
    """Returns the tokens at `places`, zeros at -1."""
    return torch.cat([x, torch.zeros_like(x[:, :1])], 1)[:, places]


def returned(y: Tensor, places: list[int]) -> Tensor:
    """Undoes `picked`."""
    order = [places.index(place) for place in range(max(places) + 1)]
    return y[:, order]


@torch.no_grad()
@pytest.mark.parametrize("variant", ["rope", "class_token", "plain"])
def test_localvim_against_one_in_one_piece(variant: str) -> None:
    """Three patches a side: windows of two are padded, and a class token is not in the middle of a flipped order."""
    model = small("localvim", variant=variant)
    weights, images = model.state_dict(), torch.randn(2, 3, 24, 24)
    x = F.conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], 8).flatten(2).mT
    if variant == "class_token":
        x = torch.cat([x[:, :4], weights["cls_token"].expand(2, -1, -1), x[:, 4:]], 1)
    x = x + weights["pos_embed"]
    for i in range(2):
        mixer = below(weights, f"layers.{i}.mixer.")
        if variant == "rope":  # angles of a row in the first half of the channels, of a column in the second
            frequencies = 10000 ** -(torch.arange(0, 4, 2) / 4)
            angle = torch.arange(3)[:, None] / 3 * 14 * frequencies
            pairs = torch.cat([angle[:, None].expand(3, 3, 2), angle[None].expand(3, 3, 2)], -1).flatten(0, 1)
            turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
                torch.ones_like(pairs), pairs
            )
            x = torch.view_as_real(turned).flatten(-2)
        projected = F.linear(F.rms_norm(x, (8,), weights[f"layers.{i}.norm.weight"], 1e-5), mixer["in_proj.weight"])
        total = torch.zeros(2, x.shape[1], 16)
        for j, direction in enumerate(SMALL_VIM["directions"][i].split()):
            places, own = walk(direction, 3, 3), below(mixer, f"directions.{j}.")
            patches, token = projected, projected[:, :0]
            if variant == "class_token":
                patches, token = torch.cat([projected[:, :4], projected[:, 5:]], 1), projected[:, 4:5]
            both = picked(patches, places)
            both = torch.cat([both[:, :4], token, both[:, 4:]], 1)
            u, z = both.chunk(2, -1)
            u = F.conv1d(F.pad(u.mT, (3, 0)), own["conv1d.weight"], own["conv1d.bias"], groups=16).mT
            y = scan(own, F.silu(u)) * F.silu(z)
            if variant == "class_token":
                back = returned(torch.cat([y[:, :4], y[:, 5:]], 1), places)
                y = torch.cat([back[:, :4], y[:, 4:5], back[:, 4:]], 1)
            else:
                y = returned(y, places)
            total = total + gated(below(mixer, "attn."), y)
        x = x + F.linear(total, mixer["out_proj.weight"])
    x = F.rms_norm(x, (8,), weights["norm_f.weight"], 1e-5)
    feature = x[:, 4] if variant == "class_token" else x.mean(1)
    expected = F.linear(feature, weights["head.weight"], weights["head.bias"])
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_localvmamba_against_one_in_one_piece() -> None:
    """An image of 20 x 12 has maps of 5 x 3 and 3 x 2: windows and the merge of patches are padded."""
    model = small("localvmamba")
    weights, images = model.state_dict(), torch.randn(2, 3, 20, 12)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = F.conv2d(images, weights["patch_embed.conv.weight"], weights["patch_embed.conv.bias"], 4).permute(0, 2, 3, 1)
    x = norm("patch_embed.norm", x)
    for i in range(2):
        name = f"layers.{i}.blocks.0.op"
        height, width, dim = x.shape[1:]
        op = below(weights, f"{name}.")
        u, z = F.linear(norm(f"layers.{i}.blocks.0.norm", x), op["in_proj.weight"]).chunk(2, -1)
        conv = F.conv2d(u.permute(0, 3, 1, 2), op["conv2d.weight"], op["conv2d.bias"], padding=1, groups=2 * dim)
        u = F.silu(conv).flatten(2).mT
        total = torch.zeros_like(u)
        for j, direction in enumerate(SMALL_VMAMBA["directions"][i].split()):
            places = walk(direction, height, width)
            y = returned(scan(below(op, f"directions.{j}."), picked(u, places)), places)
            total = total + gated(below(op, "attn."), y)
        mixed = F.linear(norm(f"{name}.out_norm", total) * F.silu(z).flatten(1, 2), op["out_proj.weight"])
        x = x + mixed.unflatten(1, (height, width))
        if i == 0:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
            x = torch.cat([x[:, a::2, b::2] for b in (0, 1) for a in (0, 1)], -1)
            x = F.linear(norm("layers.0.downsample.norm", x), weights["layers.0.downsample.reduction.weight"])
    expected = F.linear(norm("norm", x).mean((1, 2)), weights["head.weight"], weights["head.bias"])
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["localvim", "localvmamba"])
def test_every_site_is_in_the_stage_that_runs_it(family: str) -> None:
    model = small(family)
    prefixes = [prefix for stage in model.stages() for prefix in stage.modules]
    for name, _ in named_sites(model):
        assert sum(name.startswith(f"{prefix}.") for prefix in prefixes) == 1, name


@pytest.mark.parametrize("family, variant", [("localvim", "rope"), ("localvim", "class_token"), ("localvmamba", None)])
def test_a_checkpoint_comes_back_with_its_directions(family: str, variant: str | None, tmp_path: Path) -> None:
    model, images = small(family, **({} if variant is None else {"variant": variant})), torch.randn(2, 3, 24, 24)
    save_checkpoint(model, tmp_path / "model.safetensors")
    loaded = load_model(None, tmp_path / "model.safetensors")
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_directions_that_nothing_names_are_a_guess_with_a_warning(tmp_path: Path) -> None:
    model = small("localvim")
    tensors = family_of(model.config).pack(model.config, official_parameters(model))
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.warns(UserWarning, match="nothing says in which directions this LocalVim scans; 'h h_flip w2 w2_flip'"):
        assert load_model(None, tmp_path / "model.pth").config.directions == ("h h_flip w2 w2_flip",)
    told = load_model(None, tmp_path / "model.pth", geometry={"directions": SMALL_VIM["directions"]})
    assert told.config == model.config


@pytest.mark.parametrize("variant", ["rope", "class_token"])
def test_positions_are_resampled_for_another_size(variant: str, tmp_path: Path) -> None:
    save_checkpoint(small("localvim", variant=variant), tmp_path / "model.safetensors")
    larger = load_model(None, tmp_path / "model.safetensors", geometry={"image_size": 32})
    fresh = LocalVim(larger.config)
    assert "resampled bicubically from 3 x 3 to 4 x 4" in "; ".join(larger.card.notes)
    assert larger.pos_embed.shape == (1, 16 + (variant == "class_token"), 8)
    if variant == "rope":
        assert torch.equal(larger.rope.freqs_cos, fresh.rope.freqs_cos)


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    config = network.config
    official = family_of(config).pack(config, official_parameters(network))
    return {name: tuple(tensor.shape) for name, tensor in official.items()}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("local_vssm_tiny",), id="one"),
        pytest.param(tuple(PUBLISHED), id="all", marks=pytest.mark.slow),
    ],
)
def test_a_published_geometry_is_found_from_its_shapes(names: tuple[str, ...]) -> None:
    cards = [card for card in list_models() if card.name in PUBLISHED]
    assert len(cards) == len(PUBLISHED)
    for card in cards:
        if card.name not in names:
            continue
        vim = "vim" in card.name
        with torch.device("meta"):
            network = (LocalVim if vim else LocalVMamba)(card.config)
        known = [other.config for other in cards if type(other.config) is type(card.config)]
        infer = infer_localvim if vim else infer_localvmamba
        hints = {"directions": list(card.config.directions)} if card.name.endswith("wo_search") else {}
        assert infer(shapes_of(network), hints, known) == card.config, card.name
        millions = sum(parameter.numel() for name, parameter in network.named_parameters() if "freqs" not in name) / 1e6
        assert millions == pytest.approx(PUBLISHED[card.name], abs=6e-4)
    assert directions_of(get_card("local_vssm_tiny").config.directions, 14) == ("h_flip", "v", "w7", "w7_flip")


def test_other_variants_are_refused() -> None:
    shapes, maps = shapes_of(small("localvim")), shapes_of(small("localvmamba"))
    assert infer_localvim(shapes, {}).directions == ("h h_flip w2 w2_flip",)
    with pytest.raises(VisqError, match=r"not a LocalVim checkpoint: head\.weight missing"):
        infer_localvim({name: shape for name, shape in shapes.items() if name != "head.weight"}, {})
    with pytest.raises(VisqError, match="the network of the search for directions"):
        infer_localvim({**shapes, "layers.0.mixer.multi_scan.weights": (8, 1, 1, 1)}, {})
    with pytest.raises(VisqError, match="10 positions; square maps are"):
        infer_localvim({**shapes, "pos_embed": (1, 10, 8)}, {})
    with pytest.raises(VisqError, match="its 9 patches of 8 pixels are those of 24 pixels, not 32"):
        infer_localvim(shapes, {"image_size": 32})
    with pytest.raises(VisqError, match="the network of the search for directions"):
        infer_localvmamba({**maps, "layers.0.blocks.0.op.multi_scan.weights": (8, 1, 1, 1)}, {})
    with pytest.raises(VisqError, match="not a LocalVMamba checkpoint"):
        infer_localvmamba(shapes, {})
    with pytest.raises(VisqError, match="gates lie behind the scans, as in LocalVMamba"):
        infer_vmamba(maps, {})
    with pytest.raises(VisqError, match=r"directions must be a line for each layer such as .*, not 'h x2'"):
        replace(small("localvim").config, directions=("h x2",))
    with pytest.raises(VisqError, match="directions must be a line for each layer"):
        create_model("localvmamba", directions=[3])
