"""Time and peak memory of `visq quantize` on a Vim-Tiny at 224, for two sizes of the calibration set.

    python benchmarks/vim_tiny_calibration.py --calib train-0.tar [--samples 256 64] [--recipe NAME] [--depth 24]

The checkpoint has random weights in the official format (a torch file with `model`), made here: what is measured does
not depend on what the network has learned. Every run is a process of its own, so that its peak memory is its own.
With a smaller `--depth` a long recipe can be extrapolated: blocks are calibrated one after the other and all alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common import machine, write_json
from visq.models import create_model


def official_checkpoint(path: Path, depth: int) -> None:
    """Vim-Tiny with random weights under the official keys."""
    torch.manual_seed(0)
    torch.save({"model": create_model("vim_tiny", depth=depth).state_dict()}, path)


def quantize(checkpoint: Path, args: argparse.Namespace, samples: int, folder: Path) -> dict[str, Any]:
    out, report = folder / f"artifact-{samples}", folder / f"{samples}.json"
    command = [sys.executable, "-m", "visq.cli", "quantize", "--model", "vim_tiny" if args.depth == 24 else "vim"]
    command += ["--checkpoint", str(checkpoint), "--recipe", args.recipe, "--calib", args.calib]
    command += ["--samples", str(samples), "--out", str(out)]
    start = time.perf_counter()
    subprocess.run([*command, "--json", str(report)], check=True)
    seconds = time.perf_counter() - start
    result = json.loads(report.read_text())
    return {
        "samples": samples,
        "wall_seconds": round(seconds, 1),
        "calibration_seconds": round(result["calibration_seconds"], 1),
        "peak_rss_gib": round(result["peak_rss_bytes"] / 2**30, 2),
        "bytes": sum(f.stat().st_size for f in out.iterdir()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calib", required=True, help="an image folder or tar, such as Imagenette's training shard")
    parser.add_argument("--samples", type=int, nargs="+", default=[256, 64])
    parser.add_argument("--recipe", default="kscaled-w8a8")
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "vim_tiny_calibration.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "vim_tiny.pth"
        official_checkpoint(checkpoint, arguments.depth)
        rows = [quantize(checkpoint, arguments, samples, Path(temporary)) for samples in arguments.samples]
    write_json(
        arguments.out, {"recipe": arguments.recipe, "depth": arguments.depth, "rows": rows, "machine": machine()}
    )
    for row in rows:
        print(row)
