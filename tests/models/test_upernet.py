"""UperNet's head: parity with PyTorch's modules under mmsegmentation's names, and folded batch norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from visq.models import create_model, load_model, save_checkpoint


def conv_bn(inputs: int, outputs: int, kernel: int) -> nn.ModuleDict:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.ModuleDict({"conv": conv, "bn": nn.BatchNorm2d(outputs)})


class Reference(nn.Module):
    """The head of arXiv 1807.10221 with channels first, from PyTorch's modules."""

    def __init__(self, dims: list[int], width: int, classes: int) -> None:
        super().__init__()
        self.scales = (1, 2, 3, 6)
        self.psp_modules = nn.ModuleList(nn.Sequential(nn.Identity(), conv_bn(dims[-1], width, 1)) for _ in range(4))
        self.bottleneck = conv_bn(dims[-1] + 4 * width, width, 3)
        self.lateral_convs = nn.ModuleList(conv_bn(dim, width, 1) for dim in dims[:-1])
        self.fpn_convs = nn.ModuleList(conv_bn(width, width, 3) for _ in dims[:-1])
        self.fpn_bottleneck = conv_bn(len(dims) * width, width, 3)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        def run(pair: Any, x: Tensor) -> Tensor:
            return pair["bn"](pair["conv"](x)).relu()

        def to(x: Tensor, like: Tensor) -> Tensor:
            return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

        last = maps[-1]
        pooled = [
            to(run(m[1], F.adaptive_avg_pool2d(last, s)), last)
            for s, m in zip(self.scales, self.psp_modules, strict=True)
        ]
        tops = [run(self.bottleneck, torch.cat([last, *pooled], 1))]
        for x, lateral in zip(maps[-2::-1], list(self.lateral_convs)[::-1], strict=True):
            side = run(lateral, x)
            tops.insert(0, side + to(tops[0], side))
        outs = [run(conv, x) for conv, x in zip(self.fpn_convs, tops[:-1], strict=True)] + tops[-1:]
        return self.conv_seg(run(self.fpn_bottleneck, torch.cat([to(x, outs[0]) for x in outs], 1)))


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Any]:
    """Returns a reference head, and the network of a checkpoint as mmsegmentation saves it with the head's weights."""
    torch.manual_seed(0)
    model = create_model(
        "vmamba_seg", embed_dim=8, depths=(1, 1, 1), mlp_ratio=1, head="upernet", head_dim=12, num_classes=4
    )
    head = Reference([8, 16, 32], 12, 4)
    for norm in (module for module in head.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, 0, 0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
    path = tmp_path_factory.mktemp("upernet") / "plain.safetensors"
    save_checkpoint(model, path)
    backbone = {n: t for n, t in load_file(path).items() if n.startswith("backbone.")}
    weights = {f"decode_head.{name}": tensor for name, tensor in head.state_dict().items()}
    weights["auxiliary_head.conv_seg.weight"] = torch.zeros(4, 8, 1, 1)
    torch.save({"meta": {}, "state_dict": {**backbone, **weights}}, path.with_name("official.pth"))
    return head.eval().requires_grad_(False), load_model(None, path.with_name("official.pth"))


@pytest.mark.parametrize("size", [(64, 96), (50, 77)])
def test_parity_with_pytorchs_modules(official: tuple[Reference, Any], size: tuple[int, int]) -> None:
    reference, model = official
    assert (model.config.head, model.config.norm, model.config.head_dim) == ("upernet", "folded", 12)
    state: tuple[Tensor, ...] = (torch.randn(2, 3, *size),)
    with torch.no_grad():
        for stage in model.stages()[:-1]:
            state = stage.forward(*state)
        wanted = reference([x.permute(0, 3, 1, 2) for x in state])
        found = model.decode_head(*state).permute(0, 3, 1, 2)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
