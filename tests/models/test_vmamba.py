"""Tests VMamba: four directions against a loop, checkpoints of every spelling, a golden file of our own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from visq.errors import VisqError
from visq.models import create_model, get_card, load_model, save_checkpoint
from visq.models.ssm import transpose_map
from visq.models.vmamba import VMambaConfig, mixer
from visq.models.vmamba_checkpoint import infer_vmamba, pack, unpack

NOZ = {"image_size": 16, "embed_dim": 8, "depths": [1, 2], "mlp_ratio": 2, "num_classes": 5}
V0 = {**NOZ, "mlp_ratio": 0, "forward_type": "v0", "d_state": 4, "expand": 2}
GOLDEN = Path(__file__).parent / "golden_vmamba.safetensors"


def official(geometry: dict[str, object]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = create_model("vmamba", **geometry)
    return pack(model.config, model.state_dict())


@pytest.mark.parametrize(
    "name, millions", [("vmambav2v_tiny", 30.2), ("vmambav0_tiny", 22.9), ("vmambav2v_base", 86.6)]
)
def test_registered_geometries_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_cross_scan_visits_rows_columns_and_both_reversed() -> None:
    """Each direction sums its tokens so far; powers of a hundred tell the four apart."""
    scans = mixer(4, VMambaConfig(**{**NOZ, "depths": (1, 2)}))
    for index, direction in enumerate(scans.directions):
        direction.forward = lambda u, index=index: u.cumsum(1) * 100**index  # type: ignore[method-assign]
    u = torch.arange(6, dtype=torch.float64).reshape(1, 6, 1)
    grid = u.reshape(2, 3).tolist()
    y = scans.cross_scan(u, 2, 3).reshape(2, 3)
    for row in range(2):
        for column in range(3):
            rows = sum(grid[r][c] for r in range(2) for c in range(3) if (r, c) <= (row, column))
            columns = sum(grid[r][c] for r in range(2) for c in range(3) if (c, r) <= (column, row))
            back = sum(grid[r][c] for r in range(2) for c in range(3) if (r, c) >= (row, column))
            up = sum(grid[r][c] for r in range(2) for c in range(3) if (c, r) >= (column, row))
            assert float(y[row, column]) == rows + 100 * columns + 100**2 * back + 100**3 * up


def test_transpose_map_is_its_own_inverse() -> None:
    x = torch.randn(2, 12, 3)
    assert torch.equal(transpose_map(transpose_map(x, 3, 4), 4, 3), x)


@pytest.mark.parametrize("geometry", [NOZ, V0], ids=["noz", "v0"])
def test_checkpoints_keep_official_names_and_come_back(geometry: dict[str, object], tmp_path: Path) -> None:
    model = create_model("vmamba", **geometry).eval()
    tensors = pack(model.config, model.state_dict())
    first = "layers.0.blocks.0.op."
    inner = 8 * model.config.expand
    assert tensors[first + "x_proj_weight"].shape == (4, 1 + 2 * model.config.d_state, inner)
    assert tensors[first + "A_logs"].shape == (4 * inner, model.config.d_state)
    assert {"patch_embed.0.weight", "classifier.head.weight", "classifier.norm.bias"} <= set(tensors)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in unpack(model.config, tensors).items())
    path = tmp_path / "vmamba.safetensors"
    save_checkpoint(model, path)
    loaded = load_model(None, path)
    images = torch.randn(2, 3, 16, 16)
    assert loaded.config == model.config and torch.equal(loaded(images), model(images))


def test_older_spellings(tmp_path: Path) -> None:
    tensors = official(V0)
    older = {
        name.replace("classifier.", "")
        .replace(".op.", ".self_attention.")
        .replace(".blocks.0.norm.", ".blocks.0.ln_1.")
        .replace("patch_embed.0.", "patch_embed.proj.")
        .replace("patch_embed.2.", "patch_embed.norm.")
        .replace("downsample.1.", "downsample.norm.")
        .replace("downsample.2.", "downsample.reduction."): tensor.clone()
        for name, tensor in tensors.items()
    }
    linears = {
        name.replace("x_proj_weight", "x_proj.weight").replace("dt_projs_weight", "dt_projs.weight"): (
            tensor.flatten(0, 1).contiguous() if "proj" in name and tensor.ndim == 3 else tensor
        )
        for name, tensor in older.items()
    }
    for index, spelling in enumerate((tensors, older, linears)):
        path = tmp_path / f"{index}.safetensors"
        save_file(spelling, path)
        model = load_model("vmamba", path, geometry={"image_size": 16})
        found = pack(model.config, model.state_dict())
        assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)


def test_other_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "noz.safetensors"
    save_checkpoint(create_model("vmamba", **NOZ), path)
    with pytest.raises(VisqError, match=r"noz.*is not vmambav2v_tiny: .*missing key.*a VMamba .embed_dim 8"):
        load_model("vmambav2v_tiny", path)
    with pytest.raises(VisqError, match=r"noz.*not a Vim checkpoint"):
        load_model("vim", path)
    with pytest.raises(VisqError, match=r"noz.*its head has 5 classes, vmamba has 7"):
        load_model("vmamba", path, geometry={"num_classes": 7})
    tensors = {name: t for name, t in official(NOZ).items() if "out_norm" not in name}
    save_file(tensors, tmp_path / "variant.safetensors")
    with pytest.raises(VisqError, match="variant is not supported"):
        load_model("vmamba", tmp_path / "variant.safetensors")


def test_image_size_must_halve_where_patches_are_merged() -> None:
    with pytest.raises(VisqError, match="image_size 20 does not halve 3 times"):
        create_model("vmamba", **{**V0, "image_size": 20})
    model = create_model("vmamba", **{**NOZ, "image_size": 21}).eval()
    assert model(torch.randn(1, 3, 21, 21)).shape == (1, 5)
    with pytest.raises(VisqError, match="forward_type must be one of v0, v05_noz"):
        create_model("vmamba", **{**NOZ, "forward_type": "v3"})
    with pytest.raises(VisqError, match="depths must be a list of positive whole numbers"):
        create_model("vmamba", **{**NOZ, "depths": [2, 0]})


def test_shapes_give_the_geometry_back() -> None:
    for name in ("vmambav2v_tiny", "vmambav2v_base", "vmambav0_small"):
        with torch.device("meta"):
            model = create_model(name)
        shapes = {key: tuple(t.shape) for key, t in pack(model.config, model.state_dict()).items()}
        assert infer_vmamba(shapes, {}) == get_card(name).config


@torch.no_grad()
def test_golden_logits() -> None:
    """The golden logits of small random networks were written when they equalled the public code's to 2e-6."""
    golden = load_file(GOLDEN)
    for name, geometry in (("noz", NOZ), ("v0", V0)):
        model = create_model("vmamba", **geometry).eval()
        prefix = f"{name}/"
        tensors = {key.removeprefix(prefix): t for key, t in golden.items() if key.startswith(prefix)}
        images, logits = tensors.pop("images"), tensors.pop("logits")
        model.load_state_dict(unpack(model.config, tensors))
        assert float((model(images) - logits).abs().max()) < 1e-4 * float(logits.abs().max())
