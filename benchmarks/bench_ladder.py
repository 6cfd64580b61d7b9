"""The scan with and without a decay ladder: artifacts of one network take turns, one image, one thread.

    python benchmarks/bench_ladder.py [--model vim_tiny] [--recipes visq-w8a8-fused,visq-ladder-w8a8] [--rounds 60]
                                      [--keep FOLDER]

Prints the time of all scans of an image from the engine's own profile, and the processor time of the whole image, least
and median of all rounds in ms. Processor time leaves out what other processes take, but not what they do to the caches.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench_recipes import artifact
from visq.runtime.bundle import read_bundle
from visq.runtime.cpu.engine import CpuEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_tiny")
    parser.add_argument("--recipes", default="visq-w8a8-fused,visq-ladder-w8a8")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        room = args.keep or Path(temporary)
        bundles = {recipe: read_bundle(artifact(args.model, recipe, room)) for recipe in args.recipes.split(",")}
        engines = {recipe: CpuEngine(bundle.config.program, bundle, threads=1) for recipe, bundle in bundles.items()}
        program = next(iter(engines.values())).program
        batch = (
            np.random.default_rng(0).normal(size=(1, program.channels, program.size, program.size)).astype(np.float32)
        )
        scans: dict[str, list[float]] = {recipe: [] for recipe in engines}
        images: dict[str, list[float]] = {recipe: [] for recipe in engines}
        for index in range(args.rounds + 4):
            for recipe, engine in engines.items():
                engine.enable_profile(True)
                start = time.process_time()
                engine(batch)
                taken = time.process_time() - start
                profile = engine.profile()
                if index >= 4:  # the first ones warm up
                    images[recipe].append(1e3 * taken)
                    scans[recipe].append(1e3 * sum(s for kind, s in profile.items() if kind.endswith("scan")))
    for recipe in scans:
        print(
            f"{recipe}: scans {min(scans[recipe]):.2f} least, {statistics.median(scans[recipe]):.2f} median; "
            f"image {min(images[recipe]):.2f} least, {statistics.median(images[recipe]):.2f} median (processor time)"
        )


if __name__ == "__main__":
    main()
