"""The integer engine beside PyTorch, at the geometry of the embedded model, Vim-Tiny and Vim-Small.

    python benchmarks/bench_engine.py [--models vim_nano_fmnist,vim_tiny,vim_small] [--recipes kscaled-w8a8,...]
                                      [--batch 1,8] [--threads 2,1] [--seconds 3] [--no-compile]

Weights are random where no checkpoint is packaged: speed does not depend on them. Each model is calibrated on a few
images of noise. One process, contenders take turns, medians. Writes benchmarks/results/bench_engine.json after every
model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import visq
from common import machine, write_json
from visq.analysis.bench import bench, take_turns
from visq.artifact import artifact_bytes
from visq.integer.forms import FixedScan, FusedScan, IntegerLinear
from visq.models import create_model, list_models, load_model
from visq.quant.site import WEIGHT, named_sites
from visq.runtime import load_engine
from visq.runtime.bundle import read_bundle
from visq.runtime.operation_forms import form_of


def noise_images(folder: Path, size: int, channels: int, count: int = 4) -> str:
    rng = np.random.default_rng(0)
    shape = (size, size) if channels == 1 else (size, size, 3)
    for index in range(count):
        target = folder / "images" / f"class{index % 2}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(target / f"{index}.png")
    return str(folder / "images")


def work(folder: Path) -> dict[str, int]:
    """Multiply-adds of integer products and updates of the state, for one image."""
    bundle = read_bundle(folder)
    program = bundle.config.program
    assert program is not None
    counts = {"linear": 0, "scan": 0}
    for operation in program.operations:
        form = form_of(program, operation, bundle)
        if isinstance(form, IntegerLinear):
            counts["linear"] += operation.rows * form.weight.size
        elif isinstance(form, FixedScan | FusedScan):
            counts["scan"] += operation.rows * form.a.size
    return counts


def torch_products(folder: Path, threads: int) -> dict[str, float]:
    """Milliseconds an image of the same products by torch, oneDNN underneath: 8 bit (`torch._int_mm`) and float32.

    Products over fewer than 16 channels (dt_proj) are left out of both: oneDNN's 8-bit product of them is far slower.
    """
    bundle = read_bundle(folder)
    program = bundle.config.program
    assert program is not None
    shapes: Counter[tuple[int, int, int]] = Counter()
    for operation in program.operations:
        form = form_of(program, operation, bundle)
        if isinstance(form, IntegerLinear) and form.weight.shape[1] >= 16:
            shapes[(operation.rows, *form.weight.shape)] += 1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    total = {"int8": 0.0, "float32": 0.0}
    for (rows, n, k), count in shapes.items():
        x, w = torch.randint(-128, 127, (rows, k), dtype=torch.int8), torch.randint(-128, 127, (k, n), dtype=torch.int8)
        runs = {"int8": partial(torch._int_mm, x, w), "float32": partial(torch.matmul, x.float(), w.float())}
        for kind, times in take_turns(runs, set(), 0.05).items():
            total[kind] += 1e3 * count * statistics.median(times)
    torch.set_num_threads(before)
    return total


def weight_bytes(folder: Path) -> tuple[int, int]:
    """(bytes of packed weights and of parameters in floating point, number of parameters)."""
    bundle = read_bundle(folder)
    model = visq.load(folder)
    parameters = dict(model.named_parameters())
    coded = sum(value.nbytes for name, value in bundle.tensors.items() if name.endswith(".codes"))
    weights = {name for name, site in named_sites(model) if site.kind == WEIGHT and site.quantizer is not None}
    plain = sum(bundle.tensors[name].nbytes for name in parameters if name in bundle.tensors and name not in weights)
    return coded + plain, sum(p.numel() for p in parameters.values())


def measure(name: str, recipe: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    packaged = next(card for card in list_models() if card.name == name).weights is not None
    model = load_model(name) if packaged else create_model(name)
    card = model.card.preprocess
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / f"{name}-{recipe}"
        images = noise_images(Path(room), card.image_size, card.channels)
        visq.quantize(model, recipe, images, samples=4, out=folder)
        weights, parameters = weight_bytes(folder)
        found = []
        for threads in args.threads:
            backends = None
            if args.no_compile:
                backends = ["int", "eager-fp32", "eager-bf16", "plain-pytorch"]
            if recipe != args.recipes[0] or threads != args.threads[0]:
                backends = ["int", "eager-fp32"]
            rows, profile = bench(
                folder, batches=args.batch, threads=threads, seconds=args.seconds, backends=backends, progress=None
            )
            found.append(
                {
                    "model": name,
                    "recipe": recipe,
                    "threads": threads,
                    "kernel": load_engine(folder).kernel,
                    "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
                    "rows": rows,
                    "engine_profile_ms": profile,
                    "work": work(folder),
                    "torch_products_ms": torch_products(folder, threads),
                    "bytes": artifact_bytes(folder),
                    "weight_bytes_per_parameter": weights / parameters,
                    "bytes_per_parameter": artifact_bytes(folder) / parameters,
                }
            )
            report(found[-1])
        return found


def report(entry: dict[str, Any]) -> None:
    print(f"\n{entry['model']} {entry['recipe']}, {entry['threads']} threads, {entry['kernel']}")
    print(f"{entry['bytes_per_parameter']:.3f} B/parameter on disk, weights {entry['weight_bytes_per_parameter']:.3f}")
    for row in entry["rows"]:
        first = next(r for r in entry["rows"] if r["batch"] == row["batch"])["latency_ms"]["median"]
        latency = row["latency_ms"]
        print(
            f"  batch {row['batch']:2d} {row['backend']:14s} {latency['median']:9.2f} ms (p90 {latency['p90']:.2f}), "
            f"{row['images_per_second']:8.1f} images/s, x{latency['median'] / first:.2f}",
            flush=True,
        )
    print("  the same products by torch:", {kind: round(ms, 2) for kind, ms in entry["torch_products_ms"].items()})
    print("  ms an image:", {kind: round(ms, 2) for kind, ms in entry["engine_profile_ms"].items()}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="vim_nano_fmnist,vim_tiny,vim_small")
    parser.add_argument("--recipes", default="kscaled-w8a8,kscaled-w4a8")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", default="2,1")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bench_engine.json")
    args = parser.parse_args()
    args.batch, args.threads = ([int(x) for x in value.split(",")] for value in (args.batch, args.threads))
    args.recipes = args.recipes.split(",")
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []
    started = time.time()
    for name in args.models.split(","):
        for recipe in args.recipes:
            results += measure(name, recipe, args)
            write_json(args.out, {"results": results, "machine": machine(), "seconds": time.time() - started})


if __name__ == "__main__":
    main()
