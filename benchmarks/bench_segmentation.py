"""Milliseconds an image of a network that gives each pixel a class: the engine, eager and compiled PyTorch in turns.

    python benchmarks/bench_segmentation.py --checkpoint vmamba_nano_camvid.safetensors --calib train.tar
        [--artifact DIR] [--recipe visq-w8a8-fused] [--size 360x480] [--threads 2] [--seconds 5] [--no-compile]

Without --artifact the network is quantized with --recipe first. The map of logits is timed, without its enlargement,
which is the same for all. Medians of all calls, on one random image.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import visq
from common import median_seconds
from visq.models import load_model
from visq.recipes import get_recipe


def quantized(args: argparse.Namespace, out: Path) -> Path:
    """Quantizes the checkpoint and returns the artifact."""
    model = load_model("vmamba_seg", checkpoint=args.checkpoint)
    recipe = get_recipe(args.recipe).without_positions()
    visq.quantize(model, recipe, args.calib, samples=args.samples, held_out=0, check=False, out=out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--recipe", default="visq-w8a8-fused")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--size", default="360x480", help="height x width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each contender")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which compiles for minutes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as room, torch.no_grad():
        folder = args.artifact or quantized(args, Path(room) / "artifact")
        engine = visq.load(folder, backend="int", threads=args.threads)
        fp32 = load_model("vmamba_seg", checkpoint=args.checkpoint).eval().requires_grad_(False)
        images = torch.randn(1, 3, height, width)
        contenders: dict[str, Callable[[], Any]] = {
            "engine": lambda: engine(images.numpy()),
            "eager fp32": lambda: fp32(images),
        }
        if not args.no_compile:
            compiled = torch.compile(fp32)
            contenders["compiled fp32"] = lambda: compiled(images)
        found = median_seconds(contenders, args.seconds)
        for name, seconds in found.items():
            ratio = seconds / found["engine"]
            print(f"{name}: {1e3 * seconds:.1f} ms for {width} x {height}, {ratio:.2f} times the engine's time")


if __name__ == "__main__":
    main()
