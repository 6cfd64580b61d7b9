"""Megapixels a second of DVMSR: the engine and eager PyTorch take turns on one image, and their PSNR on Set5.

    python benchmarks/bench_dvmsr.py --checkpoint team07_DVMSR.pth --calib train-0.tar [--artifact DIR] [--size 128]
                                     [--threads 2] [--seconds 5] [--hr Set5/HR --lr Set5/LR_bicubic/X4]

Without --artifact the network is quantized with --recipe first. Megapixels are those of the enlarged image; medians of
all calls. With --hr and --lr it also prints whether simulation and engine have the same bits on every image.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import visq
from common import median_seconds
from visq.analysis import EngineModel
from visq.analysis.super_resolution import evaluate_restoration, pairs
from visq.models import load_model
from visq.recipes import get_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--recipe", default="visq-w8a8-fused")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each contender")
    parser.add_argument("--hr", type=Path)
    parser.add_argument("--lr", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as room:
        folder = args.artifact or quantized(args, Path(room) / "artifact")
        engine = visq.load(folder, backend="int", threads=args.threads)
        fp32 = load_model("dvmsr", checkpoint=args.checkpoint).eval().requires_grad_(False)
        images = torch.rand(1, 3, args.size, args.size) - 0.4
        contenders: dict[str, Callable[[], Any]] = {
            "engine": lambda: engine(images.numpy()),
            "eager fp32": lambda: fp32(images),
        }
        pixels = (args.size * fp32.config.upscale) ** 2 / 1e6
        for name, seconds in median_seconds(contenders, args.seconds).items():
            print(f"{name}: {pixels / seconds:.2f} megapixels a second ({1e3 * seconds:.1f} ms)")
        if args.hr and args.lr:
            compare(folder, engine, args.hr, args.lr)


def quantized(args: argparse.Namespace, out: Path) -> Path:
    """Quantizes the checkpoint and returns the artifact."""
    model = load_model("dvmsr", checkpoint=args.checkpoint)
    recipe = get_recipe(args.recipe).without_positions()
    visq.quantize(model, recipe, args.calib, samples=args.samples, held_out=0, check=False, out=out)
    return out


@torch.no_grad()
def compare(folder: Path, engine: Any, hr: Path, lr: Path) -> None:
    """Prints whether simulation and engine have the same bits on every image, and their PSNR."""
    simulation = visq.load(folder)
    for name, (_, low) in pairs(hr, lr, simulation.config.upscale).items():
        images = simulation.card.preprocess.normalize(torch.from_numpy(low.transpose(2, 0, 1).copy())[None])
        same = np.array_equal(engine(images.numpy()), simulation(images).numpy())
        print(f"{name}: simulation and engine {'have the same bits' if same else 'DIFFER'}")
    for what, model in (("simulation", simulation), ("engine", EngineModel(engine))):
        result = evaluate_restoration(model, hr, lr)
        print(f"{what}: PSNR {result.mean:.4f} dB, SSIM {result.mean_ssim:.5f}")


if __name__ == "__main__":
    main()
