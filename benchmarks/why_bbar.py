"""Why Bbar is what full-SSM quantization breaks on natural images: one scale for all channels, or one for each.

    python benchmarks/why_bbar.py --model vim_micro_imagenette --calib train-0.tar --data train-1.tar [--limit 400]

Everything is FP32 but Bbar = delta B, which is rounded inside the recurrence (a loop in PyTorch) with symmetric uniform
codes: per tensor over the full range of 64 calibration images, per tensor with the range that loses least on the images
measured among 1/1 to 1/32 of it, and per channel over each channel's full range. Use training images for both.
Results: benchmarks/results/why_bbar.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import machine, write_json
from visq.data import Dataset, open_dataset
from visq.models import load_model
from visq.models.layers import SelectiveScan

SHARES = (1, 2, 4, 8, 16, 32)


class Loop:
    """A scan with Bbar rounded: `scales` holds one scale a channel, or None for FP32."""

    def __init__(self) -> None:
        self.largest: Tensor | None = None
        self.scales: Tensor | None = None
        self.qmax = 0

    def __call__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        abar, bbar = torch.exp(delta[..., None] * A), delta[..., None] * B[:, :, None]
        if self.qmax == 0:
            seen = bbar.abs().amax((0, 1, 3))
            self.largest = seen if self.largest is None else torch.maximum(self.largest, seen)
        elif self.scales is not None:
            scale = self.scales[:, None]
            bbar = (bbar / scale).round().clamp(-self.qmax - 1, self.qmax) * scale
        h, y = torch.zeros_like(abar[:, 0]), []
        for t in range(u.shape[1]):
            h = abar[:, t] * h + bbar[:, t] * u[:, t, :, None]
            y.append((h * C[:, t, None]).sum(-1))
        return torch.stack(y, 1)

    def quantize(self, bits: int, share: float | None) -> None:
        """Per channel where `share` is None, else per tensor over 1/share of the full range."""
        assert self.largest is not None
        self.qmax = 2 ** (bits - 1) - 1
        tops = self.largest if share is None else (self.largest.max() / share).expand_as(self.largest)
        self.scales = (tops / self.qmax).clamp_min(1e-12)


@torch.no_grad()
def top1(model: Any, dataset: Dataset) -> float:
    correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in dataset.batches(50))
    return 100 * correct / len(dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--bits", default="8,6,4")
    options = parser.parse_args()
    model = load_model(options.model)
    card = model.card
    calibration, images = (
        open_dataset(path, card.preprocess, split="train", classes=card.classes).subset(n, 0)
        for path, n in ((options.calib, 64), (options.data, options.limit))
    )
    loops = [Loop() for module in model.modules() if isinstance(module, SelectiveScan)]
    scans = [module for module in model.modules() if isinstance(module, SelectiveScan)]
    for scan, loop in zip(scans, loops, strict=True):
        scan.forward = loop  # type: ignore[method-assign]
    top1(model, calibration)
    for loop in loops:
        loop.qmax = 1  # the ranges are known
    result: dict[str, Any] = {"model": options.model, "images": len(images), "fp32": top1(model, images), "bits": {}}
    print(f"FP32 {result['fp32']:.2f}", flush=True)
    for bits in map(int, options.bits.split(",")):
        row = result["bits"][bits] = {}
        for share in (None, *SHARES):
            for loop in loops:
                loop.quantize(bits, share)
            row["per channel" if share is None else f"per tensor, 1/{share}"] = top1(model, images)
        print(bits, row, flush=True)
    write_json(Path(__file__).parent / "results" / "why_bbar.json", {**result, "machine": machine()})


if __name__ == "__main__":
    main()
